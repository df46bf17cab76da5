/** Seeded pseudo-random numbers (mulberry32): the same seed gives the same run. */
export interface Random {
  /** 0 ≤ n < limit. */
  below(limit: number): number;
  chance(percent: number): boolean;
  pick<T>(of: readonly T[]): T;
}

export function seeded(seed: number): Random {
  let state = seed >>> 0;
  const next = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return {
    below: limit => Math.floor(next() * limit),
    chance: percent => next() * 100 < percent,
    pick: of => of[Math.floor(next() * of.length)]!,
  };
}
