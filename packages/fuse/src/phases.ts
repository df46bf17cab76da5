/**
 * Where the time of a start goes: points that a service passes between the start of its process and its first answer. A take-over waits for all of them,
 * so they are always noted (some 20 numbers) and told at log level debug.
 */
const passed: [name: string, at: number, cpu: number][] = [];

/** Of this thread, ms; 0 where Node cannot tell (before 23.9). */
function cpuTime(): number {
  const usage = process.threadCpuUsage?.();
  return usage === undefined ? 0 : (usage.user + usage.system) / 1000;
}

/** Notes that `name` is done now. */
export function phase(name: string): void {
  passed.push([name, performance.now(), cpuTime()]);
}

/**
 * `name 1.2/0.8, …`: milliseconds that each took and those of them in which this thread had a processor, in order, from `from` (performance.now()) on; then
 * forgets them.
 */
export function phases(from = 0): string {
  let last = from;
  let lastCpu = 0;
  const parts: string[] = [];
  for (const [name, at, cpu] of passed.splice(0)) {
    if (at >= from) parts.push(`${name} ${(at - last).toFixed(1)}/${(cpu - lastCpu).toFixed(1)}`);
    if (at >= from) last = at;
    lastCpu = cpu;
  }
  return parts.join(', ');
}
