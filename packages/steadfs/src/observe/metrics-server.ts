/** /metrics over HTTP (`--metrics`); the text is prom-client's, which is loaded at the first request. */
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import type { Metrics } from './metrics.ts';
import { parseMetricsAddress } from './metrics-address.ts';

/** Answers one request and closes: all that a scraper needs. node:http was measured to cost an idle process 18 MB. */
function answer(socket: Socket, text: () => Promise<string>): void {
  let head = '';
  let asked = false;
  socket.setTimeout(10_000, () => socket.destroy());
  // A scraper that goes away is its own affair.
  socket.on('error', () => socket.destroy());
  socket.on('end', () => {
    if (!asked) socket.end();
  });
  socket.on('data', data => {
    head += data.toString('latin1');
    if (head.length > 16_384) socket.destroy();
    if (asked || !head.includes('\r\n\r\n')) return;
    asked = true;
    const [method, target] = head.split(' ', 2);
    const reply = (status: string, body: string) =>
      socket.end(
        `HTTP/1.1 ${status}\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n` +
          `content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${method === 'HEAD' ? '' : body}`,
      );
    if (target?.split('?')[0] !== '/metrics') reply('404 Not Found', 'see /metrics\n');
    else
      text().then(
        body => reply('200 OK', body),
        (error: unknown) =>
          reply('500 Internal Server Error', `${error instanceof Error ? error.message : String(error)}\n`),
      );
  });
}

/**
 * Listens on `host:port`. When the port is taken and it was not asked for by the user, any free one is used.
 * Answers the server and the address in use.
 */
export async function serveMetrics(
  metrics: Metrics,
  labels: Record<string, string>,
  address: string,
  explicit: boolean,
): Promise<{ server: Server; address: string }> {
  const { host, port: wanted } = parseMetricsAddress(address);
  const server = createServer({ allowHalfOpen: true }, socket =>
    answer(socket, async () => (await import('./exposition.ts')).metricsText(metrics, labels)),
  );
  const listen = (port: number) =>
    new Promise<void>((done, failed) => {
      server.once('error', failed);
      server.listen(port, host, () => {
        server.off('error', failed);
        done();
      });
    });
  try {
    await listen(wanted);
  } catch (error) {
    if (explicit || (error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
    await listen(0);
  }
  // A mount that ends must not wait for a scraper.
  server.unref();
  return { server, address: `${host}:${(server.address() as AddressInfo).port}` };
}
