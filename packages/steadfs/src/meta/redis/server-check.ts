/** Settings of the server that a volume depends on. */
import { asBuffer } from './forms.ts';
import type { Link } from './link.ts';
import type { RedisUrl } from './url.ts';

/** What the Go client looks at too: version, eviction policy, persistence. Evicting servers are set right; the rest is a warning. */
export async function checkServer(link: Link, url: RedisUrl, warn: (message: string) => void): Promise<void> {
  let info: Map<string, string>;
  try {
    const text = asBuffer(await link.ask(['INFO'])).toString();
    info = new Map(text.split('\r\n').map(l => [l.slice(0, l.indexOf(':')), l.slice(l.indexOf(':') + 1)]));
  } catch (e) {
    // An ACL user may not be allowed to ask.
    warn(`${url.display}: INFO is refused: ${e instanceof Error ? e.message : String(e)}`);
    return;
  }
  link.serverVersion ||= info.get('redis_version') ?? '';
  const [major = 0] = link.serverVersion.split('.').map(Number);
  if (major < 5) warn(`${url.display}: Redis ${link.serverVersion} is older than 5, scripts may not replicate rightly`);
  const policy = info.get('maxmemory_policy');
  if (policy !== undefined && policy !== 'noeviction') {
    const set = await link.ask(['CONFIG', 'SET', 'maxmemory-policy', 'noeviction']).catch((e: unknown) => e);
    if (set instanceof Error)
      warn(
        `${url.display}: maxmemory-policy is ${policy} and cannot be changed to noeviction: metadata may be evicted`,
      );
    else warn(`${url.display}: maxmemory-policy was ${policy}; it is noeviction now`);
  }
  if (info.get('aof_enabled') === '0') {
    // Servers of providers may refuse CONFIG: then it says that nothing is saved, which is worth a look.
    const save = await link.ask(['CONFIG', 'GET', 'save']).catch(() => undefined);
    const saves = Array.isArray(save) && String(save[1]) !== '';
    warn(
      saves
        ? `${url.display}: AOF is off: what was written after the last snapshot is lost when the server crashes`
        : `${url.display}: neither AOF nor snapshots are on: metadata is lost when the server restarts`,
    );
  }
}
