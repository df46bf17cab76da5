/** When and how far to read ahead: two streams are told apart per handle (spec/algorithms.md §4.3). Pure arithmetic. */

export interface Session {
  /** Where the stream is: end of its last read. 0 = unused. */
  last: number;
  /** Bytes that it went through. */
  total: number;
  /** Bytes to have in memory behind `last`; 0 = none yet. */
  ahead: number;
  /** Up to where loads were started. */
  issued: number;
  turn: number;
}

export interface Sessions {
  list: [Session, Session];
  turns: number;
}

export function createSessions(): Sessions {
  const make = (): Session => ({ last: 0, total: 0, ahead: 0, issued: 0, turn: 0 });
  return { list: [make(), make()], turns: 0 };
}

/** The session of a read of `len` bytes at `offset`, moved on. `max`: the greatest window. */
export function advance(sessions: Sessions, offset: number, len: number, blockSize: number, max: number): Session {
  const session = match(sessions, offset, blockSize) ?? replace(sessions, offset);
  session.turn = ++sessions.turns;
  const end = offset + len;
  if (end > session.last) {
    session.total += Math.min(end - session.last, len);
    session.last = end;
  } else if (session.total === 0) session.total = len;
  if (max < blockSize) {
    session.ahead = 0;
  } else if (session.ahead === 0) {
    if (offset === 0 || session.total > len) session.ahead = blockSize;
  } else if (session.total >= session.ahead && session.ahead * 2 <= max) {
    session.ahead *= 2;
  } else if (session.ahead > max) session.ahead = Math.max(blockSize, session.ahead / 2);
  return session;
}

function match(sessions: Sessions, offset: number, blockSize: number): Session | undefined {
  let best: Session | undefined;
  for (const s of sessions.list) {
    if (s.last > 0 && s.last <= offset && offset <= s.last + Math.max(s.ahead / 4, 256 * 1024))
      if (best === undefined || s.last > best.last) best = s;
  }
  if (best !== undefined) return best;
  for (const s of sessions.list) {
    const back = Math.max(s.ahead / 8, Math.min(blockSize, 1024 * 1024));
    if (s.last > 0 && s.last - back <= offset && offset < s.last)
      if (best === undefined || s.last < best.last) best = s;
  }
  return best;
}

function replace(sessions: Sessions, offset: number): Session {
  const [a, b] = sessions.list;
  const s = a.last === 0 ? a : b.last === 0 ? b : a.turn < b.turn ? a : b;
  s.last = offset;
  s.total = 0;
  s.ahead = 0;
  s.issued = 0;
  return s;
}
