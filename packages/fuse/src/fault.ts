/**
 * Places where tests make a process die or misbehave. Empty, so a bundler drops the calls with their arguments (which therefore may only be literals and local
 * names); a bundle made with `scripts/build.ts --faults` has test/faults/points.ts in its place. Named as `part.what-was-just-done` or `part.before-what`.
 */
export function faultPoint(_name: string, _what?: unknown): void {}
