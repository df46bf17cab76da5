/**
 * Counts an unmounted volume on SQLite and the file store anew: what every mutation keeps beside the names (links, usage, statistics, references of slices) must be what
 * the tables say, so an operation that took effect twice, or by half, is seen. Every object that the metadata names must be there.
 */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { FileType } from '../../src/format/attr.ts';
import { decodeSlices } from '../../src/format/slice.ts';

const align = (length: number): number => (length === 0 ? 4096 : Math.ceil(length / 4096) * 4096);

function objectsBelow(folder: string): Map<string, number> {
  const found = new Map<string, number>();
  if (!existsSync(folder)) return found;
  for (const e of readdirSync(folder, { withFileTypes: true, recursive: true }))
    if (e.isFile() && /^\d+_\d+_\d+$/.test(e.name)) found.set(e.name, statSync(join(e.parentPath, e.name)).size);
  return found;
}

/**
 * What is wrong with the volume that support/volume.ts made in `base`. No fault are objects that nothing names any more (a process died between PUT and note), and data of
 * removed files that is listed for deletion (it died between, and the hourly job has not come yet).
 */
export function inspectVolume(base: string): string[] {
  const faults: string[] = [];
  const db = new DatabaseSync(join(base, 'meta.db'), { readOnly: true });
  const all = (sql: string) => db.prepare(sql).all() as Record<string, number & Uint8Array>[];
  try {
    const nodes = new Map(all('SELECT inode,type,nlink,length,parent FROM jfs_node').map(r => [r.inode as number, r]));
    const links = new Map<number, number>();
    const folders = new Map<number, { length: number; space: number; inodes: number; subdirs: number }>();
    for (const [ino, n] of nodes)
      if (n.type === FileType.directory) folders.set(ino, { length: 0, space: 0, inodes: 0, subdirs: 0 });
    for (const e of all('SELECT parent,inode,type FROM jfs_edge')) {
      const node = nodes.get(e.inode!);
      const folder = folders.get(e.parent!);
      if (!node || !folder) {
        faults.push(`edge of ${e.parent} to ${e.inode}: ${node ? 'no such directory' : 'no such inode'}`);
        continue;
      }
      links.set(e.inode!, (links.get(e.inode!) ?? 0) + 1);
      folder.inodes++;
      folder.space += node.type === FileType.file ? align(node.length!) : 4096;
      folder.length += node.type === FileType.file ? node.length! : 0;
      if (e.type === FileType.directory) folder.subdirs++;
    }
    let space = 0;
    let inodes = 0;
    for (const [ino, n] of nodes) {
      if (ino === 1) continue;
      inodes++;
      space += n.type === FileType.file ? align(n.length!) : 4096;
      const folder = folders.get(ino);
      const wanted = folder ? 2 + folder.subdirs : (links.get(ino) ?? 0);
      if (n.nlink !== wanted) faults.push(`inode ${ino} has nlink ${n.nlink}, counted ${wanted}`);
      if (!links.has(ino)) faults.push(`inode ${ino} has no name`);
    }
    const counters = new Map(all('SELECT name,value FROM jfs_counter').map(r => [String(r.name), Number(r.value)]));
    if (counters.get('totalInodes') !== inodes)
      faults.push(`totalInodes is ${counters.get('totalInodes')}, counted ${inodes}`);
    if (counters.get('usedSpace') !== space) faults.push(`usedSpace is ${counters.get('usedSpace')}, counted ${space}`);
    for (const s of all('SELECT inode,data_length,used_space,used_inodes FROM jfs_dir_stats')) {
      const f = folders.get(s.inode!);
      if (!f) faults.push(`statistics of directory ${s.inode}, which is gone`);
      else if (f.length !== s.data_length || f.space !== s.used_space || f.inodes !== s.used_inodes)
        faults.push(
          `statistics of directory ${s.inode}: ${s.data_length}/${s.used_space}/${s.used_inodes}, counted ${f.length}/${f.space}/${f.inodes}`,
        );
    }
    const slices = new Map<number, { size: number; refs: number }>();
    const removed = new Set(all('SELECT inode FROM jfs_delfile').map(r => r.inode as number));
    for (const chunk of all('SELECT inode,indx,slices FROM jfs_chunk')) {
      if (!nodes.has(chunk.inode!) && !removed.has(chunk.inode!))
        faults.push(`chunk ${chunk.indx} of inode ${chunk.inode}, which is gone`);
      const here = new Set<string>();
      for (const s of decodeSlices(chunk.slices as Uint8Array)) {
        if (s.id === 0) continue;
        const name = `${s.id} at ${s.pos} from ${s.off}`;
        if (here.has(name)) faults.push(`inode ${chunk.inode} has slice ${name} twice`);
        here.add(name);
        const known = slices.get(s.id);
        if (known) known.refs++;
        else slices.set(s.id, { size: s.size, refs: 1 });
      }
    }
    const objects = objectsBelow(join(base, 'objects'));
    const blockSize =
      1024 *
      (JSON.parse(String(all("SELECT value FROM jfs_setting WHERE name='format'")[0]!.value)) as { BlockSize: number })
        .BlockSize;
    for (const [id, { size }] of slices)
      for (let block = 0; block * blockSize < size; block++) {
        const length = Math.min(blockSize, size - block * blockSize);
        if (objects.get(`${id}_${block}_${length}`) !== length)
          faults.push(`object ${id}_${block}_${length} is missing`);
      }
    for (const table of ['sustained', 'flock', 'plock', 'session2'])
      for (const row of all(`SELECT * FROM jfs_${table}`)) faults.push(`left in ${table}: ${JSON.stringify(row)}`);
  } finally {
    db.close();
  }
  return faults;
}
