"""System calls of the test of both clients (both-clients.test.ts), one command a process:

  make DIR SEED                      a tree with something of everything
  describe DIR                       one JSON line per path below DIR, contents as a hash, the trash included
  fixture DIR                        the same in the form of the fixtures' expected.jsonl, with few processes
  share A B SEED SECONDS             files written through one mount and read through the other after each close, against a model
  storm DIR SEED SECONDS             names made, linked, renamed and removed at random; says how many calls and how many renames with EIO
  locks A B                          flock and fcntl locks seen by the other mount, and waiters woken
  hold FILE FILE                     holds locks of both kinds on both, says so, until it is killed
  count FILE KIND TIMES              adds 1 to the number in FILE under a lock, TIMES times
  copies FROM DIR SEED SECONDS       copies FROM by copy_file_range while others rewrite and compact it
  rewrite FILE SEED SECONDS          writes bytes of FILE again as they are
"""
import base64, errno, fcntl, hashlib, json, os, random, socket, stat, struct, subprocess, sys, threading, time

INTERNAL = (b'.accesslog', b'.stats', b'.config', b'.control')


def content(rnd, size):
    return rnd.randbytes(size)


def put(path, data, mode=0o644):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view):]
    finally:
        os.close(fd)


def make(base, seed):
    rnd = random.Random(seed)
    os.chdir(base)
    root = os.getuid() == 0
    for i, size in enumerate((0, 1, 4095, 4097, 131071, 1 << 20, (4 << 20) + 17, rnd.randrange(9 << 20))):
        put('file%d' % i, content(rnd, size))
    put(b'caf\xc3\xa9', b'utf-8')
    put(b'raw-\xff\xfe', b'not utf-8')
    put('n' * 255, b'long')
    fd = os.open('holes', os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 100 << 20)
    os.pwrite(fd, content(rnd, 70000), (64 << 20) - 35000)
    os.pwrite(fd, b'end', (70 << 20))
    os.ftruncate(fd, (70 << 20) + 2)
    os.ftruncate(fd, 80 << 20)
    os.close(fd)
    fd = os.open('overwritten', os.O_RDWR | os.O_CREAT)
    for _ in range(40):
        os.pwrite(fd, content(rnd, rnd.randrange(1, 30000)), rnd.randrange(300000))
        os.fsync(fd)
    os.ftruncate(fd, 250000)
    os.close(fd)
    for d in range(4):
        os.mkdir('dir%d' % d, 0o755)
        for f in range(6):
            put('dir%d/f%d' % (d, f), content(rnd, rnd.randrange(2000)))
    os.makedirs('deep/' + '/'.join('abcdefgh'))
    put('deep/a/b/c/d/e/f/g/h/leaf', b'leaf')
    os.rename('dir3', 'deep/moved')
    os.link('file4', 'dir0/hard')
    os.link('file4', 'dir1/hard')
    os.rename('dir1/hard', 'dir2/hard')
    os.symlink('../file1', 'dir0/link')
    os.symlink('x' * 4000, 'dir0/long-link')
    os.symlink(b'\xff\x01', 'dir0/raw-link')
    os.mkfifo('fifo', 0o640)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind('socket')
    if root:
        os.mknod('char', 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod('block', 0o660 | stat.S_IFBLK, os.makedev(259, 65537))
        os.chown('file2', 1000, 1001)
        os.chown('dir0', 65534, 2000000000)
    os.chmod('file1', 0o4755)
    os.chmod('file3', 0o000)
    os.chmod('dir1', 0o3777)
    os.setxattr('file5', 'user.text', b'value')
    os.setxattr('file5', 'user.binary', bytes(range(256)))
    os.setxattr('dir0', 'user.big', content(rnd, 40000))
    os.setxattr('file5', 'user.gone', b'1')
    os.removexattr('file5', 'user.gone')
    for path in ('file1', 'dir2'):
        if subprocess.run(['setfacl', '-m', 'u:1234:rw,g:77:r', path], capture_output=True).returncode == 0 and path == 'dir2':
            subprocess.run(['setfacl', '-d', '-m', 'u:99:rwx', path], check=True)
            put('dir2/inherits', b'acl')
    if hasattr(os, 'posix_fallocate'):
        fd = os.open('allocated', os.O_RDWR | os.O_CREAT)
        os.posix_fallocate(fd, 0, 123456)
        os.close(fd)
    s, d = os.open('file6', os.O_RDONLY), os.open('copied', os.O_RDWR | os.O_CREAT)
    off = 0
    while off < (4 << 20):
        off += os.copy_file_range(s, d, (4 << 20) - off, off, off)
    os.close(s), os.close(d)
    os.utime('file0', ns=(1234567890123456789, 987654321987654321))
    os.utime('dir0', ns=(1, 2000000000000000003))
    os.utime('dir0/link', ns=(5, 6), follow_symlinks=False)
    # Into the trash, where there is one.
    put('removed', content(rnd, 5000))
    os.unlink('removed')
    os.mkdir('removed-dir')
    os.rmdir('removed-dir')
    put('replaced', b'old')
    put('replacing', b'new')
    os.rename('replacing', 'replaced')


def one(full, shown):
    st = os.lstat(full)
    o = {'path': shown.decode('latin-1'), 'mode': '%o' % st.st_mode, 'uid': st.st_uid, 'gid': st.st_gid, 'size': st.st_size,
         'nlink': st.st_nlink, 'ino': st.st_ino, 'blocks': st.st_blocks, 'atime': st.st_atime_ns, 'mtime': st.st_mtime_ns, 'ctime': st.st_ctime_ns}
    if stat.S_ISREG(st.st_mode):
        h = hashlib.sha256()
        with open(full, 'rb') as f:
            while b := f.read(1 << 20):
                h.update(b)
        o['sha256'] = h.hexdigest()
    if stat.S_ISLNK(st.st_mode):
        o['target'] = os.readlink(full).decode('latin-1')
    if stat.S_ISBLK(st.st_mode) or stat.S_ISCHR(st.st_mode):
        o['rdev'] = st.st_rdev
    try:
        o['xattrs'] = {n: hashlib.sha256(os.getxattr(full, n, follow_symlinks=False)).hexdigest() for n in sorted(os.listxattr(full, follow_symlinks=False))}
    except OSError as e:
        o['xattrs'] = errno.errorcode[e.errno]
    return o


def describe(base):
    bottom = os.fsencode(base)
    lines = []

    def walk(rel):
        full = os.path.join(bottom, rel) if rel else bottom
        o = one(full, b'/' + rel)
        if rel == b'.trash':  # answered from memory, with the times of the mount
            o = {'path': '/.trash'}
        lines.append(o)
        if stat.S_ISDIR(os.lstat(full).st_mode):
            for n in sorted(os.listdir(full)):
                if rel or n not in INTERNAL + (b'.trash',):
                    walk(os.path.join(rel, n))

    walk(b'')
    if os.path.exists(os.path.join(bottom, b'.trash')):
        walk(b'.trash')
    for o in lines:
        print(json.dumps(o))


FLAGS = {1: 's', 0x10: 'i', 0x20: 'a'}


def fixture(base):
    bottom = os.fsencode(base)
    kinds = {stat.S_IFREG: 'file', stat.S_IFDIR: 'dir', stat.S_IFLNK: 'symlink', stat.S_IFIFO: 'fifo', stat.S_IFBLK: 'blk', stat.S_IFCHR: 'chr', stat.S_IFSOCK: 'sock'}
    lines, acls = [], []

    def text(o, key, raw):
        try:
            o[key] = raw.decode()
        except UnicodeDecodeError:
            o[key + 'B64'] = base64.b64encode(raw).decode()

    def walk(rel):
        full = bottom + b'/' + rel if rel else bottom
        st = os.lstat(full)
        kind = kinds[stat.S_IFMT(st.st_mode)]
        o = {}
        text(o, 'path', b'/' + rel)
        o.update(type=kind, mode='%04o' % stat.S_IMODE(st.st_mode), uid=st.st_uid, gid=st.st_gid, size=st.st_size, nlink=st.st_nlink, ino=str(st.st_ino),
                 atimeNs=str(st.st_atime_ns), mtimeNs=str(st.st_mtime_ns), ctimeNs=str(st.st_ctime_ns), blocks=st.st_blocks)
        if kind == 'file' and st.st_size < (1 << 28):
            h = hashlib.sha256()
            with open(full, 'rb') as f:
                while b := f.read(1 << 20):
                    h.update(b)
            o['sha256'] = h.hexdigest()
        if kind == 'symlink':
            text(o, 'target', os.readlink(full))
        if kind in ('blk', 'chr'):
            o['rdev'] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
        try:
            names = [n for n in sorted(os.listxattr(full, follow_symlinks=False)) if not n.startswith('system.posix_acl')]
            if names:
                o['xattrs'] = {n: base64.b64encode(os.getxattr(full, n, follow_symlinks=False)).decode() for n in names}
        except OSError as e:
            o['xattrErr'] = e.errno
        if kind != 'symlink':
            acls.append((full, o))
        if kind in ('file', 'dir'):
            fd = os.open(full, os.O_RDONLY | os.O_NONBLOCK)
            try:
                bits = struct.unpack('i', fcntl.ioctl(fd, 0x80086601, bytes(4))[:4])[0]  # FS_IOC_GETFLAGS
                letters = ''.join(c for bit, c in FLAGS.items() if bits & bit)
                if letters:
                    o['flags'] = letters
            except OSError:
                pass  # as lsattr: none are shown
            finally:
                os.close(fd)
        lines.append(o)
        if kind == 'dir':
            for n in sorted(os.listdir(full)):
                if rel or n not in INTERNAL + (b'.trash',):
                    walk((rel + b'/' if rel else b'') + n)

    walk(b'')
    walk(b'.trash')
    shown = subprocess.run([b'getfacl', b'-np', b'--', *(full for full, _ in acls)], capture_output=True).stdout.decode('utf-8', 'replace')
    blocks = shown.strip('\n').split('\n\n')
    assert len(blocks) == len(acls), '%d answers of getfacl for %d paths' % (len(blocks), len(acls))
    for (_, o), block in zip(acls, blocks):
        rules = [line.replace('\t', ' ') for line in block.split('\n') if line and not line.startswith('#')]
        if len(rules) > 3:
            o['acl'] = rules
    for o in lines:
        print(json.dumps(o, ensure_ascii=False))


def share(a, b, seed, seconds):
    """A model of each file is kept here; every change goes through a mount taken at random, every check through the other one."""
    rnd = random.Random(seed)
    mounts = (os.path.join(a, 'share-%d' % seed), os.path.join(b, 'share-%d' % seed))
    os.mkdir(mounts[0])
    model = {}
    checks = 0
    end = time.time() + seconds

    def names(side, expected):
        # Names may be cached for a second by a client; contents after an open may not.
        until = time.time() + 5
        while (seen := set(os.listdir(mounts[side]))) != expected:
            assert time.time() < until, 'names through %s: %s more, %s less' % (mounts[side], seen - expected, expected - seen)
            time.sleep(0.02)

    names(1, set())
    while time.time() < end:
        side = rnd.randrange(2)
        name = 'f%d' % rnd.randrange(12)
        path, other = os.path.join(mounts[side], name), os.path.join(mounts[1 - side], name)
        kind = rnd.choice(('write', 'write', 'append', 'truncate', 'patch', 'patch', 'replace', 'unlink', 'attr'))
        if kind == 'write' or name not in model:
            if name not in model:
                names(side, set(model))
            data = rnd.randbytes(rnd.choice((0, 10, 5000, 200000, 1200000)))
            put(path, data)
            model[name] = bytearray(data)
        elif kind == 'append':
            data = rnd.randbytes(rnd.randrange(1, 40000))
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            assert os.write(fd, data) == len(data)
            os.close(fd)
            model[name] += data
        elif kind == 'patch':
            fd = os.open(path, os.O_RDWR)
            for _ in range(rnd.randrange(1, 6)):
                at, data = rnd.randrange(len(model[name]) + 1), rnd.randbytes(rnd.randrange(1, 9000))
                os.pwrite(fd, data, at)
                model[name][at:at + len(data)] = data
            os.close(fd)
        elif kind == 'truncate':
            size = rnd.randrange(2 * len(model[name]) + 1)
            fd = os.open(path, os.O_RDWR)
            os.ftruncate(fd, size)
            os.close(fd)
            model[name] = model[name][:size] + bytes(max(0, size - len(model[name])))
        elif kind == 'replace':
            data = rnd.randbytes(rnd.randrange(100000))
            put(path + '.new', data)
            os.rename(path + '.new', path)
            model[name] = bytearray(data)
            names(1 - side, set(model))
            # The old inode may be cached under the name for a second.
            until = time.time() + 5
            while os.stat(other).st_ino != os.stat(path).st_ino:
                assert time.time() < until, 'a replaced file stays: ' + other
                time.sleep(0.02)
        elif kind == 'unlink':
            os.unlink(path)
            del model[name]
            names(1 - side, set(model))
            until = time.time() + 5
            while os.path.exists(other):
                assert time.time() < until, 'a removed name stays: ' + other
                time.sleep(0.02)
            continue
        else:
            value = rnd.randbytes(20)
            os.setxattr(path, 'user.v', value)
            assert os.getxattr(other, 'user.v') == value, 'xattr of ' + other
            mode = rnd.choice((0o600, 0o644, 0o755))
            os.chmod(path, mode)
            until = time.time() + 5
            while stat.S_IMODE(os.stat(other).st_mode) != mode:
                assert time.time() < until, 'mode of ' + other
                time.sleep(0.02)
            continue
        until = time.time() + 5
        while not os.path.exists(other):
            assert time.time() < until, 'a new name is missing: ' + other
            time.sleep(0.02)
        fd = os.open(other, os.O_RDONLY)
        size = os.fstat(fd).st_size
        seen = os.pread(fd, len(model[name]) + 1, 0) if len(model[name]) < 1 << 30 else b''
        os.close(fd)
        if bytes(seen) != bytes(model[name]):
            at = next((i for i, (x, y) in enumerate(zip(seen, model[name])) if x != y), min(len(seen), len(model[name])))
            raise AssertionError('after %s through %s: %s has %d bytes (stat %d), expected %d; first difference at %d' % (
                kind, mounts[side], other, len(seen), size, len(model[name]), at))
        assert size == len(model[name]), 'after %s: length of %s is %d, expected %d' % (kind, other, size, len(model[name]))
        checks += 1
    print(checks)


def storm(base, seed, seconds):
    rnd = random.Random(seed)
    os.chdir(base)
    end = time.time() + seconds
    done = lost = 0
    allowed = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.EINVAL, errno.ELOOP, errno.ESTALE, errno.EMLINK, errno.EBADF}
    while time.time() < end:
        x, y = 'n%d' % rnd.randrange(25), 'n%d' % rnd.randrange(25)
        try:
            k = rnd.randrange(10)
            if k < 2:
                put(x, rnd.randbytes(rnd.randrange(9000)))
            elif k == 2:
                os.unlink(x)
            elif k < 5:
                os.rename(x, y)
            elif k == 5:
                os.link(x, y)
            elif k == 6:
                os.mkdir(x)
            elif k == 7:
                os.rmdir(x)
            elif k == 8:
                os.truncate(x, rnd.randrange(9000))
            else:
                put(x + '/' + y, b'inside')
            done += 1
        except OSError as e:
            # A rename of the Go client on SQL databases, see the test.
            if e.errno == errno.EIO and 3 <= k < 5:
                lost += 1
            elif e.errno not in allowed:
                raise
    print(done, lost)


def locks(a, b):
    put(os.path.join(a, 'locked'), bytes(1000))
    time.sleep(1.1)
    for first, second in ((a, b), (b, a)):
        one_, two = (os.open(os.path.join(m, 'locked'), os.O_RDWR) for m in (first, second))

        def refused(act):
            try:
                act()
            except OSError as e:
                assert e.errno in (errno.EAGAIN, errno.EACCES), e
                return
            raise AssertionError('a lock was given twice: %s, then %s' % (first, second))

        fcntl.flock(one_, fcntl.LOCK_SH)
        fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(two, fcntl.LOCK_UN)
        fcntl.flock(one_, fcntl.LOCK_EX)
        refused(lambda: fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB))
        fcntl.flock(one_, fcntl.LOCK_UN)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        waited = []

        def wait():
            fcntl.flock(one_, fcntl.LOCK_EX)
            waited.append(time.time())

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        assert not waited, 'flock was given while the other mount held it'
        fcntl.flock(two, fcntl.LOCK_UN)
        thread.join(20)
        assert waited, 'a waiter for flock was not woken'
        fcntl.flock(one_, fcntl.LOCK_UN)

        fcntl.lockf(one_, fcntl.LOCK_EX, 100, 100)
        # The same process: locks of two mounts have owners of their own.
        refused(lambda: fcntl.lockf(two, fcntl.LOCK_SH | fcntl.LOCK_NB, 10, 195))
        fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB, 50, 200)
        fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB, 100, 0)
        held = struct.unpack('hhqqi4x', fcntl.fcntl(two, fcntl.F_GETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)))
        assert held[0] == fcntl.F_WRLCK and held[2:4] == (100, 100), 'F_GETLK through %s: %s' % (second, held)
        fcntl.lockf(one_, fcntl.LOCK_UN, 50, 100)
        fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB, 50, 100)
        refused(lambda: fcntl.lockf(one_, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 120))
        os.close(two)
        # Closing gives its locks back.
        until = time.time() + 10
        while True:
            try:
                fcntl.lockf(one_, fcntl.LOCK_EX | fcntl.LOCK_NB, 1000, 0)
                break
            except OSError:
                assert time.time() < until, 'close left fcntl locks'
                time.sleep(0.05)
        os.close(one_)


def hold(a, b):
    for path, kind, at in ((a, fcntl.LOCK_EX, 5), (b, fcntl.LOCK_SH, 500)):
        fd = os.open(path, os.O_RDWR)
        fcntl.lockf(fd, kind, 100, at)
        fcntl.flock(fd, fcntl.LOCK_SH)
    print('held', flush=True)
    time.sleep(600)


def count(path, kind, times):
    for _ in range(times):
        fd = os.open(path, os.O_RDWR)
        (fcntl.flock if kind == 'flock' else fcntl.lockf)(fd, fcntl.LOCK_EX)
        # What the holder before closed is seen by an open that comes after the lock was given.
        again = os.open(path, os.O_RDWR)
        n = int(os.pread(again, 100, 0))
        os.pwrite(again, b'%d\n' % (n + 1), 0)
        os.fsync(again)
        os.close(again)
        os.close(fd)


def copies(source, folder, seed, seconds):
    src = os.open(source, os.O_RDONLY)
    size = os.fstat(src).st_size
    end = time.time() + seconds
    n = 0
    while time.time() < end:
        dst = os.open('%s/copy-%d-%d' % (folder, seed, n), os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        at = 0
        while at < size:
            got = os.copy_file_range(src, dst, size - at, at, at)
            assert got > 0
            at += got
        os.close(dst)
        n += 1
    print(n)


def rewrite(path, seed, seconds):
    rnd = random.Random(seed)
    fd = os.open(path, os.O_RDWR)
    data = os.pread(fd, 1 << 24, 0)
    end = time.time() + seconds
    n = 0
    while time.time() < end:
        at = rnd.randrange(len(data))
        os.pwrite(fd, data[at:at + rnd.randrange(1, 5000)], at)
        os.fsync(fd)
        n += 1
    os.close(fd)
    print(n)


command, *rest = sys.argv[1:]
number = {'make': (str, int), 'share': (str, str, int, float), 'storm': (str, int, float), 'count': (str, str, int), 'copies': (str, str, int, float), 'rewrite': (str, int, float)}
globals()[command](*(t(x) for t, x in zip(number.get(command, (str,) * len(rest)), rest)))
