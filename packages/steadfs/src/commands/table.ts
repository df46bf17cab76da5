/** Tables with `+---+` borders: headers centred, cells right-aligned except those of one column. */
export function table(header: readonly string[], rows: readonly (readonly string[])[], leftColumn = -1): string {
  const widths = header.map((h, i) => Math.max(h.length, ...rows.map(r => (r[i] ?? '').length)));
  const border = `+${widths.map(w => '-'.repeat(w + 2)).join('+')}+`;
  const centre = (text: string, width: number) => {
    const before = Math.ceil((width - text.length) / 2);
    return ' '.repeat(before) + text + ' '.repeat(width - text.length - before);
  };
  const line = (cells: string[]) => `|${cells.map(c => ` ${c} `).join('|')}|`;
  return [
    border,
    line(header.map((h, i) => centre(h, widths[i]!))),
    border,
    ...rows.map(r => line(r.map((c, i) => (i === leftColumn ? c.padEnd(widths[i]!) : c.padStart(widths[i]!))))),
    border,
  ].join('\n');
}
