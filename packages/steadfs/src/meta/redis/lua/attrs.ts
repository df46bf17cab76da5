/** Scripts on attributes, in the order of checks of meta/ops/attrs.ts. Arguments begin at ARGV[5]. */

/** KEYS: i{ino}. ARGV: inode b, `flags u32`, length that was covered. Result: entry. Only for O_TRUNC. */
export const open = `
local function body()
  local d=D(A[5])
  local flags=sunpack('>I4',A[6])
  local a=node(d)
  if not a then fail(2) end
  checkopen(a,flags)
  opentrunc(d,a,flags,A[7])
  return E(A[5],d,a)
end
`;

/**
 * KEYS: i{ino}. ARGV: inode b, `mask u32 mode u16 uid u32 gid u32 size 8 atime 12 mtime 12 flags u8 tier u8`, length that was covered.
 * mask: 1 mode, 2 uid, 4 gid, 8 size, 16 atime, 32 mtime, 128 atime now, 256 mtime now, 1024 tier, 32768 flags; ours: 65536 kill suid and
 * sgid, 131072 by handle, 262144 in use. Result: entry.
 */
export const setattr = `
local function body()
  local b=A[5]
  local d=D(b)
  local mask,mode,uid,gid,size,at,mt,flags,tier=sunpack('>I4I2I4I4c8c12c12BB',A[6])
  local function has(bits) return band(mask,bits)~=0 end
  local a=node(d)
  if not a then fail(2) end
  local byh=has(131072)
  if isHour(a.p) and not byh and not has(262144) then fail(1) end
  local seta,setm=has(16+128),has(32+256)
  if has(8) then
    if a.t==2 then fail(21) end
    if a.t~=1 then fail(22) end
    if not byh then access(a,2) end
    fixed(a)
  end
  local owns=has(6)
  if owns or has(1) then fixed(a) end
  local checked=CHK~=0 and UID~=0
  if has(2) and checked and (UID~=a.u or uid~=a.u) then fail(1) end
  if has(4) and checked and (UID~=a.u or (gid~=a.g and not ingroup(gid))) then fail(1) end
  if has(1) and not isowner(a) then fail(1) end
  if (seta or setm) and (not has(8) or not byh) and (not has(8) or seta or has(32)) then
    local now=has(128) and has(256)
    if band(a.f,1)~=0 or (not now and band(a.f,2)~=0) then fail(1) end
    if not isowner(a) then
      if not now then fail(1) end
      if not allows(a,2) then fail(13) end
    end
  end
  if has(32768) and not isowner(a) then fail(1) end
  local old=a
  a=copy(old)
  local changed=false
  local g
  if has(8) then
    if size~=old.l then
      steps(old,size,A[7])
      g=grow(d,old,size)
      a.l=size
    end
    a.mt=NOW changed=true
  elseif band(mask,34231)==0 and not byh then changed=true end
  if has(65536) and a.t~=2 then
    local m=afterwrite(old.m,old.g)
    if m~=old.m then
      -- chown(2) with neither id: the kernel asks nobody, and only the owner may take the bits away.
      if band(mask,34239)==0 and not byh and UID~=0 and UID~=old.u then fail(1) end
      a.m=m changed=true
    end
  end
  mode=band(mode,4095)
  local move=false
  if owns then
    if a.t~=2 and band(old.m,3072)~=0 then
      local kill=old.m-nosuid(old.m)
      if UID~=0 and not ingroup(old.g) then kill=bor(kill,band(old.m,1024)) end
      a.m=band(a.m,bnot(kill))
      mode=band(mode,bnot(kill))
    end
    if has(2) then a.u=uid end
    if has(4) then a.g=gid end
    move=UG and (a.u~=old.u or a.g~=old.g) and a.t<3
    if move then
      local s=space(old)
      if a.u~=old.u and over('user',F(a.u),s,1) then fail(122) end
      if a.g~=old.g and over('group',F(a.g),s,1) then fail(122) end
    end
    changed=true
  end
  local newrule,id
  if has(1) then
    if checked and band(mode,1024)~=0 and not ingroup(a.g) then mode=band(mode,bnot(1024)) end
    local r=old.aa~=0 and acl(old.aa)
    if r then
      local o,gr,m,x=sunpack('>I2I2I2I2',r)
      local mid=band(rshift(mode,3),7)
      if m==65535 then gr=mid else m=mid end
      newrule=spack('>I2I2I2I2',band(rshift(mode,6),7),gr,m,band(mode,7))..string.sub(r,9)
      mode=bor(band(mode,3584),aclmode(newrule))
      id=aclfind(newrule)
    end
    a.m=mode changed=true
  end
  if has(128) then a.at=NOW changed=true elseif has(16) then a.at=at changed=true end
  if has(256) then a.mt=NOW changed=true elseif has(32) then a.mt=mt changed=true end
  if has(32768) and flags~=a.f then a.f=flags changed=true end
  if has(1024) and tier~=a.ti then a.ti=tier changed=true end
  if not changed then return E(b,d,old) end
  a.ct=NOW
  -- writes
  if newrule then a.aa=id or aclput(newrule) end
  if g then cover(d,old,size,A[7]) account(old,size,g) log('TRUNCATE',nil,d,D(old.l),D(size),'0') end
  if move then owner(old.u,old.g,-space(old),-1) owner(a.u,a.g,space(a),1) end
  local s=put(d,a)
  local m=band(mask,1+2+4+16+32+1024+32768)
  if has(128) then m=bor(m,16) end
  if has(256) then m=bor(m,32) end
  if a.m~=old.m then m=bor(m,1) end
  if m~=0 and CL then
    local as,an=sunpack('>i8I4',a.at) local ms,mn=sunpack('>i8I4',a.mt)
    log('SETATTR',nil,d,F(m),'0',F(a.u),F(a.g),F(a.m),F(a.f),F(as),F(ms),F(an),F(mn),F(NS),F(NN),F(a.aa))
  end
  return E(b,d,a,s)
end
`;

/** One step of covering whole chunks before a truncation or punch. KEYS: i{ino}. ARGV: inode b, indexes u32 each. */
export const coverStep = `
local function body()
  local d=D(A[5])
  if call('EXISTS',P..'i'..d)==0 then fail(2) end
  for at=1,#A[6],4 do
    local i=sunpack('>I4',A[6],at)
    call('RPUSHX',P..'c'..d..'_'..F(i),spack('>I4I4I4I4I4I4',0,0,0,0,0,67108864))
  end
  return ''
end
`;

/** KEYS: i{ino}. ARGV: inode b, `offset 8 end 8 mode u32 length u64 as log`, indexes u32 of chunks to be covered whole. Result: entry. */
export const fallocate = `
local function body()
  local b=A[5]
  local d=D(b)
  local off,stop,mode=sunpack('>c8c8I4',A[6])
  local a=node(d)
  if not a then fail(2) end
  if a.t==4 then fail(32) end
  if a.t~=1 or band(a.f,1)~=0 then fail(1) end
  if band(a.f,2)~=0 and band(mode,bnot(1))~=0 then fail(1) end
  access(a,2)
  local old=copy(a)
  local from,to,len=num(off),num(stop),num(a.l)
  local g
  if band(mode,1)==0 and to>len then g=grow(d,old,stop) a.l=stop end
  local first,last
  if band(mode,18)~=0 and from<len then
    to=math.min(to,len)
    first,last=floor(from/CH),floor((to-1)/CH)
    if last-first>1000 and A[7]~='done' then error({s=a.l},0) end
  end
  -- writes
  if first then
    if first==last then hole(d,first,from-first*CH,to-from) else
      hole(d,first,from-first*CH,CH-(from-first*CH))
      if A[7]~='done' then for i=first+1,last-1 do hole(d,i,0,CH) end end
      hole(d,last,0,to-last*CH)
    end
  end
  if g then account(old,stop,g) end
  a.mt=NOW a.ct=NOW
  if UID~=0 then a.m=nosuid(a.m) end
  put(d,a)
  log('FALLOCATE',nil,d,D(off),F(num(stop)-from),F(mode))
  return E(b,d,a)
end
`;

const checkXattr = `
local function checkx(a,name)
  fixed(a)
  if CHK==0 or UID==0 then return end
  if string.sub(name,1,8)=='trusted.' then fail(1) end
  if string.sub(name,1,5)=='user.' then
    if a.t>2 then fail(1) end
    if a.t==2 and band(a.m,512)~=0 and not isowner(a) then fail(1) end
    access(a,2)
  elseif not isowner(a) then fail(1) end
end
`;

/** KEYS: i{ino}, x{ino}. ARGV: inode b, name, value, mode. Result: entry. */
export const setxattr = `${checkXattr}
local function body()
  local d=D(A[5])
  local a=node(d)
  if not a then fail(2) end
  checkx(a,A[6])
  local old=call('HGET',P..'x'..d,A[6])
  if A[8]=='1' and old then fail(17) end
  if A[8]=='2' and not old then fail(61) end
  if old==A[7] then return E(A[5],d,a) end
  call('HSET',P..'x'..d,A[6],A[7])
  a.ct=NOW
  put(d,a)
  log('SETXATTR',nil,d,A[6],A[7],A[8])
  return E(A[5],d,a)
end
`;

/** KEYS: i{ino}, x{ino}. ARGV: inode b, name. Result: entry. */
export const removexattr = `${checkXattr}
local function body()
  local d=D(A[5])
  local a=node(d)
  if not a then fail(2) end
  checkx(a,A[6])
  if call('HEXISTS',P..'x'..d,A[6])==0 then fail(61) end
  call('HDEL',P..'x'..d,A[6])
  a.ct=NOW
  put(d,a)
  log('REMOVEXATTR',nil,d,A[6])
  return E(A[5],d,a)
end
`;

/** KEYS: i{ino}. ARGV: inode b, kind "a"/"d", stored rule or "", "m" when it is minimal, mode bits of the rule. Result: entry. */
export const setAcl = `
local function body()
  local d=D(A[5])
  if not ACLON then fail(95) end
  local a=node(d)
  if not a then fail(2) end
  if a.t==3 then fail(95) end
  fixed(a)
  if not isowner(a) then fail(1) end
  local rule=A[7]
  if A[6]=='d' and a.t~=2 then
    if rule~='' then fail(13) end
    return E(A[5],d,a)
  end
  local had=a.aa
  if A[6]=='d' then had=a.da end
  if rule=='' and had==0 and (A[6]=='d' or UID==0 or ingroup(a.g) or band(a.m,1024)==0) then return E(A[5],d,a) end
  local store=rule~='' and (A[6]=='d' or A[8]~='m')
  local id=0
  if store then id=aclfind(rule) end
  -- writes
  if store and not id then id=aclput(rule) end
  if A[6]=='d' then a.da=id
  else
    a.aa=id
    if rule~='' then a.m=bor(band(a.m,3584),tonumber(A[9])) end
    if UID~=0 and not ingroup(a.g) then a.m=band(a.m,bnot(1024)) end
  end
  a.ct=NOW
  put(d,a)
  log('SETFACL',nil,d,A[6]=='a' and '1' or '2',F(id))
  return E(A[5],d,a)
end
`;

/** KEYS: i{ino}. ARGV: inode b, mode "r"/"s". */
export const touchAtime = `
local function body()
  local d=D(A[5])
  local a=node(d)
  if not a then return '' end
  local s,n=sunpack('>i8I4',a.at)
  local function before(t) local x,y=sunpack('>i8I4',t) return s<x or (s==x and n<y) end
  local age=NS-s
  if not (before(a.mt) or before(a.ct) or age>86400 or (A[6]=='s' and age>1)) then return '' end
  a.at=NOW
  put(d,a)
  log('ACCESS',nil,d)
  return E(A[5],d,a)
end
`;
