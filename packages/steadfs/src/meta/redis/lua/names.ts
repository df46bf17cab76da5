/** Scripts on names, in the order of checks of meta/ops/names.ts. Arguments begin at ARGV[5]. */

/**
 * mknod, create and tmpfile. KEYS: d{parent}, i{parent}, i{new}, d{new}. ARGV: parent b, name, `type u8 mode u16 umask u16 rdev u32 openflags u32
 * kind u8` (0 mknod, 1 create, 2 tmpfile), new inode b, symlink target, length that was covered. Result: u8 created, entry. Extra: the parent.
 * Answers 'I' when the new inode is taken (a fail-over took the counter back).
 */
export const make = `
local function body()
  local pb,name,nb=A[5],A[6],A[8]
  local pd,nd=D(pb),D(nb)
  local ty,mode,umask,rdev,flags,kind=sunpack('>BI2I2I4I4B',A[7])
  local p=parent(pd)
  if kind~=2 then
    access(p,1)
    local ft,fb=edge(pd,name)
    if fb then
      if kind==0 or band(flags,128)~=0 then fail(17) end
      local d=D(fb)
      local a=node(d)
      if not a then fail(5,'the entry for inode '..d..' has no inode') end
      if a.t==2 then fail(21) end
      if a.t~=1 then fail(116) end
      checkopen(a,flags)
      opentrunc(d,a,flags,A[10])
      return string.char(0)..E(fb,d,a)
    end
  end
  insertable(pb,p)
  local dir=ty==2
  local gid=GID
  if band(p.m,1024)~=0 then gid=p.g end
  quota(UID,gid,4096,1,{pd})
  local a={f=band(p.f,32),t=ty,m=0,u=UID,g=gid,at=NOW,mt=NOW,ct=NOW,n=1,l=Z8,r=0,p=pb,aa=0,da=0,ti=p.ti}
  if dir then a.n=2 a.l=L8(4096) elseif ty==3 then a.l=L8(#A[9]) end
  if ty==5 or ty==6 then a.r=rdev end
  local rule,newrule
  mode=band(mode,4095)
  if p.da~=0 and ty~=3 then rule=acl(p.da) end
  if rule then
    local o,g,m,x,nu=sunpack('>I2I2I2I2I4',rule)
    local minimal=m==65535 and nu==0 and sunpack('>I4',rule,13)==0
    if minimal then mode=band(mode,bor(3584,aclmode(rule)))
    else
      if m==65535 then m=g end
      newrule=spack('>I2I2I2I2',band(o,rshift(mode,6),7),g,band(m,rshift(mode,3),7),band(x,mode,7))..string.sub(rule,9)
      mode=bor(band(mode,3584),aclmode(newrule))
    end
    if dir then a.da=p.da end
  else mode=band(mode,bnot(umask)) end
  if band(p.m,1024)~=0 then
    if dir then mode=bor(mode,1024)
    elseif band(mode,1032)==1032 and CHK~=0 and UID~=0 and not ingroup(p.g) then mode=band(mode,bnot(1024)) end
  end
  if ty==3 then mode=511 end
  a.m=mode
  local id=newrule and aclfind(newrule)
  -- writes
  if newrule then a.aa=id or aclput(newrule) end
  if kind==2 then a.n=0 end
  local s=enc(a)
  -- Before anything that a second attempt would do again.
  if not call('SET',P..'i'..nd,s,'NX') then error({i=nb},0) end
  if kind==2 then
    call('SADD',P..'session'..SID,nd)
    ainode(a,1)
    log('CREATE',nd,pd,'tmpfile_'..nd,F(a.u),F(a.g),'1',F(mode),F(umask),'','linux','false')
    log('UNLINK',nd,pd,'tmpfile_'..nd,'0','true','false')
    return string.char(1)..E(nb,nd,a,s)
  end
  setedge(pd,name,ty,nb)
  local touched=touch(pb,pd,p,dir and 1 or 0)
  if ty==3 then call('SET',P..'s'..nd,A[9]) end
  if dir then for _,k in ipairs({'dirUsedInodes','dirDataLength','dirUsedSpace'}) do call('HSET',P..k,nd,'0') end end
  ainode(a,1)
  aent(pd,a,1)
  log('CREATE',nd,pd,name,F(a.u),F(a.g),F(ty),F(mode),F(umask),A[9],'linux','true')
  return string.char(1)..E(nb,nd,a,s),touched and E(pb,pd,p,touched) or ''
end
`;

/** KEYS: d{parent}, i{parent}, i{ino}. ARGV: inode b, parent b, name. Result: entry. Extra: the parent. */
export const link = `
local function body()
  local b,pb,name=A[5],A[6],A[7]
  local d,pd=D(b),D(pb)
  local p=parent(pd)
  access(p,1)
  if edge(pd,name) then fail(17) end
  insertable(pb,p)
  local a=node(d)
  if not a then fail(2) end
  if a.t==2 then fail(1) end
  fixed(a)
  local held=a.n==0
  if held and not sustained(d) then fail(2) end
  dquota(pd,space(a),1)
  local oldp=a.p
  a.n=a.n+1 a.ct=NOW
  a.p=held and pb or Z8
  setedge(pd,name,a.t,b)
  if held then call('SREM',P..'session'..SID,d) call('DEL',P..'p'..d)
  else
    if oldp~=Z8 then paradd(d,D(oldp),1) end
    paradd(d,pd,1)
  end
  put(d,a)
  local touched=touch(pb,pd,p,0)
  aent(pd,a,1)
  log('LINK',F(a.n),d,pd,name,'true')
  return E(b,d,a),touched and E(pb,pd,p,touched) or ''
end
`;

/**
 * KEYS: d{parent}, i{parent}, i{ino}. ARGV: parent b, name, expected inode b or "", is open "1"/"0", skip trash "1"/"", hour folder. Result: state
 * u8, entry. Extra: the parent. Answers 'O' and the inode when the caller must tell whether it is open.
 */
export const unlink = `
local function body()
  local pb,name=A[5],A[6]
  local pd=D(pb)
  local p=parent(pd)
  access(p,1)
  local t,b=edge(pd,name)
  if not b then fail(2) end
  access(p,3)
  removable(pb,pd,p)
  if t==2 then fail(21) end
  local d=D(b)
  local a=node(d)
  if not a then return dangling(pd,name,b,d,t) end
  sticky(p,a)
  fixed(a)
  local w=place(pb,pd,name,d,a,A[9]~='',A[10])
  local plan=planlink(d,b,a,w,A[7],A[8])
  qdirs(pd)
  local out=unlinked(pb,pd,name,b,d,a,plan)
  local touched=touch(pb,pd,p,0)
  log('UNLINK',d,pd,name,w and w.d or '0',tostring(plan.sustain==true),'true')
  return out,touched and E(pb,pd,p,touched) or ''
end
`;

/** KEYS: d{parent}, i{parent}. ARGV: parent b, name, skip trash, hour folder. Result and extra as unlink. */
export const rmdir = `
local function body()
  local pb,name=A[5],A[6]
  local pd=D(pb)
  local p=parent(pd)
  access(p,1)
  local t,b=edge(pd,name)
  if not b then fail(2) end
  access(p,3)
  if pd~=TD or A[7]=='' then removable(pb,pd,p) end
  if t~=2 then fail(20) end
  local d=D(b)
  local a=node(d)
  if not a then return dangling(pd,name,b,d,t) end
  sticky(p,a)
  fixed(a)
  if call('EXISTS',P..'d'..d)==1 then fail(39) end
  local w=place(pb,pd,name,d,a,A[7]~='',A[8])
  qdirs(pd)
  local out=dirremoved(pb,pd,name,b,d,a,w)
  local touched=touch(pb,pd,p,-1)
  log('RMDIR',d,pd,name,w and w.d or '0')
  return out,touched and E(pb,pd,p,touched) or ''
end
`;

/**
 * KEYS: d{ps}, i{ps}, d{pd}, i{pd}, i{source}. ARGV: ps b, name, pd b, new name, `flags u32`, expected replaced inode b or "", its
 * is-open, hour folder, usage of the moved tree `source b, space f64, inodes f64, target b, space f64, inodes f64` or "". Result: bits u8
 * (1 moved, 2 replaced, 4 exchanged) and for each u16 length and its entry (replaced with its state in front). Extra: the parents. Answers 'U' when the
 * usage of a tree is wanted.
 */
export const rename = `
local function edges(pd,name,nd,nname)
  if pd~=nd then
    local t,b=edge(pd,name)
    return t,b,edge(nd,nname)
  end
  local e=call('HMGET',P..'d'..pd,name,nname)
  local st,sb,tt,tb
  if e[1] then st,sb=string.byte(e[1]),string.sub(e[1],2,9) end
  if e[2] then tt,tb=string.byte(e[2]),string.sub(e[2],2,9) end
  return st,sb,tt,tb
end
local function notbelow(d,what)
  local at=d
  for _=1,100000 do
    if at==what then fail(22) end
    if at=='1' or at=='0' or #at==19 then return end
    local s=call('GET',P..'i'..at)
    if not s or #s<71 then return end
    at=D(string.sub(s,64,71))
  end
end
local function reparent(b,d,a,from,to,tb)
  a.ct=NOW
  if a.t==2 or a.p~=Z8 then a.p=tb
  elseif from~=to then paradd(d,to,1) paradd(d,from,-1) end
  return E(b,d,a,put(d,a))
end
local function subset(x,y)
  for _,q in ipairs(x) do
    local hit=false
    for _,r in ipairs(y) do if q==r then hit=true end end
    if not hit then return false end
  end
  return true
end
local function body()
  local pb,name,nb,nname=A[5],A[6],A[7],A[8]
  local flags=sunpack('>I4',A[9])
  local exchange,restore=band(flags,2)~=0,band(flags,32)~=0
  local pd,nd=D(pb),D(nb)
  local same=pb==nb
  if isT(nb) or pd==TD or (isT(pb) and UID~=0) then fail(1) end
  local p=parent(pd)
  local np=same and p or parent(nd)
  access(p,1) access(np,1)
  local st,sb,tt,tb=edges(pd,name,nd,nname)
  if not sb then fail(2) end
  if tb and band(flags,1)~=0 then fail(17) end
  if not tb and exchange then fail(2) end
  if not restore and isT(np.p) then fail(2) end
  local sd=D(sb)
  local a=node(sd)
  if not a then fail(2) end
  if tb==sb then return string.char(0) end
  access(p,3) access(np,3)
  fixed(p)
  if band(np.f,1)~=0 then fail(1) end
  if tb then fixed(np) end
  sticky(p,a)
  fixed(a)
  local movesdir=a.t==2 and not same
  if movesdir then access(a,2) notbelow(nd,sd) end
  local td=tb and D(tb)
  local ra=tb and node(td)
  if tb then
    if ra then sticky(np,ra) fixed(ra) end
    if exchange then
      if not ra then fail(2) end
      if tt==2 and not same then access(ra,2) notbelow(pd,td) end
    else
      if a.t==2 and tt~=2 then fail(20) end
      if a.t~=2 and tt==2 then fail(21) end
      if tt==2 and call('EXISTS',P..'d'..td)==1 then fail(39) end
    end
  end
  local us,ui,ts,ti=0,0,0,0
  if not same and DS then
    local from,to=qdirs(pd),qdirs(nd)
    if not (subset(from,to) and subset(to,from)) then
      local srcdir,dstdir=a.t==2,exchange and ra.t==2
      if srcdir or dstdir then
        if A[13]=='' or string.sub(A[13],1,8)~=sb or (dstdir and string.sub(A[13],25,32)~=tb) then error({u=sb..(dstdir and tb or Z8)},0) end
        local _
        _,us,ui,_,ts,ti=sunpack('>c8ddc8dd',A[13])
      end
      if not subset(to,from) then dquota(nd,space(a)+us,1+ui,from) end
      if exchange and not subset(from,to) then dquota(pd,space(ra)+ts,1+ti,to) end
    end
  end
  local w,plan
  if tb and not exchange and ra then
    w=place(nb,nd,nname,td,ra,false,A[12])
    if tt~=2 then plan=planlink(td,tb,ra,w,A[10],A[11]) end
  end
  -- writes
  local links,nlinks=0,0
  local bits=1
  local moved,replaced,exchanged
  local function moveusage(from,to,x,s,i)
    if same then return end
    aent(from,x,-1) aent(to,x,1)
    if x.t==2 then
      for _,q in ipairs(qdirs(from)) do inc('dirQuotaUsedSpace',q,-s) inc('dirQuotaUsedInodes',q,-i) end
      for _,q in ipairs(qdirs(to)) do inc('dirQuotaUsedSpace',q,s) inc('dirQuotaUsedInodes',q,i) end
    end
  end
  if movesdir then links=links-1 nlinks=nlinks+1 end
  moveusage(pd,nd,a,us,ui)
  if exchange then
    if tt==2 and not same then links=links+1 nlinks=nlinks-1 end
    moveusage(nd,pd,ra,ts,ti)
    setedge(pd,name,tt,tb)
    setedge(nd,nname,st,sb)
    exchanged=reparent(tb,td,ra,nd,pd,pb)
    bits=bits+4
  else
    if tb then
      if not ra then call('HDEL',P..'d'..nd,nname)
      elseif tt==2 then replaced=dirremoved(nb,nd,nname,tb,td,ra,w) nlinks=nlinks-1
      else replaced=unlinked(nb,nd,nname,tb,td,ra,plan) end
      if replaced then bits=bits+2 end
    end
    call('HDEL',P..'d'..pd,name)
    setedge(nd,nname,st,sb)
  end
  moved=reparent(sb,sd,a,pd,nd,nb)
  local extra=''
  local touched=touch(pb,pd,p,same and links+nlinks or links)
  if touched then extra=E(pb,pd,p,touched) end
  touched=not same and touch(nb,nd,np,nlinks)
  if touched then extra=extra..E(nb,nd,np,touched) end
  log('MOVE',sd,pd,name,nd,nname,F(flags),td or '0',w and w.d or '0')
  local out=string.char(bits)..spack('>I2',#moved)..moved
  if replaced then out=out..spack('>I2',#replaced)..replaced end
  if exchanged then out=out..spack('>I2',#exchanged)..exchanged end
  return out,extra
end
`;
