/** The tables of RESULTS.md. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { join } from 'node:path';

/** What figures were taken on. */
export const machine = `${cpus().length} × ${cpus()[0]?.model ?? '?'}, ${Math.round(totalmem() / 2 ** 30)} GiB, Linux ${release()}`;

/** Replaces the section of this heading in RESULTS.md, or adds it. */
export function record(heading: string, lines: readonly string[]): void {
  const file = join(import.meta.dirname, 'RESULTS.md');
  const text = existsSync(file) ? readFileSync(file, 'utf8') : '# Measured\n';
  const sections = text.split(/^(?=## )/m).filter(section => !section.startsWith(`## ${heading}\n`));
  writeFileSync(file, `${sections.map(s => s.trimEnd()).join('\n\n')}\n\n## ${heading}\n\n${lines.join('\n')}\n`);
}
