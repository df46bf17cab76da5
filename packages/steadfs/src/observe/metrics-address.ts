/** `HOST:PORT` of --metrics; without a host all addresses, [::1] in brackets. Throws Error for what is none. */
export function parseMetricsAddress(address: string): { host: string; port: number } {
  const at = address.lastIndexOf(':');
  const host = address.slice(0, Math.max(at, 0)).replace(/^\[|\]$/g, '') || '0.0.0.0';
  const port = Number(address.slice(at + 1) || Number.NaN);
  if (at < 0 || !Number.isInteger(port) || port < 0 || port > 65535) throw new Error(`"${address}" is no HOST:PORT`);
  return { host, port };
}
