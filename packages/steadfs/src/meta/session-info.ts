/** The JSON of a session (spec/volume.md §7). */
import type { SessionInfo } from './engine.ts';

export function serialiseSessionInfo(info: SessionInfo): Buffer {
  return Buffer.from(
    JSON.stringify({
      Version: info.version,
      HostName: info.hostName,
      ...(info.ipAddrs === undefined || info.ipAddrs.length === 0 ? {} : { IPAddrs: info.ipAddrs }),
      MountPoint: info.mountPoint,
      MountTime: info.mountTime,
      ProcessID: info.processId,
      ...(info.pushes === true ? { SteadfsPushes: true } : {}),
    }),
  );
}

/** A record that is no JSON is shown as one without contents. */
export function parseSessionInfo(bytes: Uint8Array | null): SessionInfo {
  let raw: Record<string, unknown> = {};
  try {
    raw = JSON.parse(Buffer.from(bytes ?? []).toString('utf8') || '{}') as Record<string, unknown>;
  } catch {
    // Shown empty.
  }
  const text = (name: string): string => (typeof raw[name] === 'string' ? raw[name] : '');
  return {
    version: text('Version'),
    hostName: text('HostName'),
    mountPoint: text('MountPoint'),
    mountTime: text('MountTime'),
    processId: typeof raw.ProcessID === 'number' ? raw.ProcessID : 0,
    ...(raw.SteadfsPushes === true ? { pushes: true } : {}),
    ...(Array.isArray(raw.IPAddrs) ? { ipAddrs: raw.IPAddrs.filter((a): a is string => typeof a === 'string') } : {}),
  };
}
