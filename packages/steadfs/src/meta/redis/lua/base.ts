/**
 * Lua that every script of ours shares. Scripts are not rolled back, so each does all its reads and checks first and then only writes that
 * cannot fail. Lua numbers are doubles: inodes, lengths and lock ends travel as 8-byte big-endian strings and are compared or added as two
 * halves; numbers that are given to Redis are printed by F (the default "%.14g" would round). Strings are never compared with <, which is strcoll
 * in Redis. Names: d = decimal inode (as in key names), b = the same as 8 bytes, a = decoded attributes.
 */

/** Inode numbers and attributes; needs `P`, the key prefix. */
export const numbers = `
local call=redis.call
local spack,sunpack=struct.pack,struct.unpack
local floor,fmt=math.floor,string.format
local Z8=string.rep(string.char(0),8)
local function F(n) if n==0 then return '0' end return fmt('%.0f',n) end
local function big(h,l)
  local s=''
  for _=1,4 do
    local q=floor(h/1000000)
    local t=(h-q*1000000)*4294967296+l
    local ql=floor(t/1000000)
    s=fmt('%06.0f',t-ql*1000000)..s
    h=q l=ql
  end
  s=string.gsub(s,'^0+','')
  if s=='' then return '0' end
  return s
end
local function D(b)
  local h,l=sunpack('>I4I4',b)
  if h<2097152 then return F(h*4294967296+l) end
  return big(h,l)
end
local function num(b) local h,l=sunpack('>I4I4',b) return h*4294967296+l end
local function L8(n) local h=floor(n/4294967296) return spack('>I4I4',h,n-h*4294967296) end
local function isT(b) local h,l=sunpack('>I4I4',b) return h==2147483647 and l>=268435456 end
local function isHour(b) local h,l=sunpack('>I4I4',b) return h==2147483647 and l>268435456 end
local function dec(s)
  local n=#s
  if n<71 then s=string.sub(s,1,63)..Z8 end
  local f,tm,u,g,at,mt,ct,nl,l,r,p=sunpack('>BI2I4I4c12c12c12I4c8I4c8',s)
  local aa,da,ti=0,0,0
  if n>=79 then aa,da=sunpack('>I4I4',s,72) ti=string.byte(s,80) or 0
  elseif n>=72 then ti=string.byte(s,72) end
  local t=floor(tm/4096)
  return {f=f,t=t,m=tm-t*4096,u=u,g=g,at=at,mt=mt,ct=ct,n=nl,l=l,r=r,p=p,aa=aa,da=da,ti=ti}
end
local function copy(a) return {f=a.f,t=a.t,m=a.m,u=a.u,g=a.g,at=a.at,mt=a.mt,ct=a.ct,n=a.n,l=a.l,r=a.r,p=a.p,aa=a.aa,da=a.da,ti=a.ti} end
local function enc(a)
  local s=spack('>BI2I4I4c12c12c12I4c8I4c8',a.f,a.t*4096+a.m,a.u,a.g,a.at,a.mt,a.ct,a.n,a.l,a.r,a.p)
  if a.aa~=0 or a.da~=0 then s=s..spack('>I4I4',a.aa,a.da) end
  if a.ti~=0 then s=s..string.char(a.ti) end
  return s..string.char(0)
end
local function node(d) local s=call('GET',P..'i'..d) if not s then return nil end return dec(s) end
local function put(d,a) local s=enc(a) call('SET',P..'i'..d,s) return s end
local function trashed(d,a)
  local n=0
  if a.t~=2 and a.n>0 and a.p==Z8 then
    local h=call('HGETALL',P..'p'..d)
    for i=1,#h,2 do if #h[i]==19 then n=n+tonumber(h[i+1]) end end
  end
  return n
end
-- s: the encoded attributes, where put() has answered them.
local function E(b,d,a,s) s=s or enc(a) return b..spack('>I2B',trashed(d,a),#s)..s end
`;

/**
 * What each mutation begins with: ARGV[1] is the context (see script.ts), ARGV[2] the field of the op record, ARGV[3] the sid, ARGV[4]
 * the number of the change-log transaction. KEYS are those whose values are cached; other names are computed.
 */
export const context = String.raw`
local K,A=KEYS,ARGV
local band=bit.band
local bor,bnot,rshift=bit.bor,bit.bnot,bit.rshift
local HEAD,QH,QL,NOW,fl,SKIP,CAP,MAXI,UID,GID,CHK,NG,GP=sunpack('>c20I4I4c12I2dddI4I4BI2',A[1])
local DS,UG,CL,TRASHON,ACLON=band(fl,1)~=0,band(fl,2)~=0,band(fl,8)~=0,band(fl,32)~=0,band(fl,4)~=0
local SID=A[3]
local SK=P..'STEADFS.s'..SID
local NS,NN=sunpack('>i8I4',NOW)
local function fail(e,m) error({e=e,m=m},0) end
local function ingroup(g)
  if g==GID then return true end
  for i=0,NG-1 do if sunpack('>I4',A[1],GP+i*4)==g then return true end end
  return false
end
local function esc(s) return (string.gsub(s,'[^%w !#$&\'*+%-./:;<=>?@%[%]^_{|}~\96]',function(c) return fmt('%%%02X',string.byte(c)) end)) end
local function log(op,res,...)
  if not CL then return end
  local t={...}
  for i=1,#t do t[i]=esc(tostring(t[i])) end
  call('RPUSH',P..'txnLog',F(NS)..'.'..fmt('%09.0f',NN)..'|'..op..'('..table.concat(t,',')..')'..(res and ':'..res or '')..'|('..SID..','..A[4]..')')
  call('INCR',P..'txnLastLog')
end
`;

/** Runs `body`, which answers the result and what only our cache wants to know, under the session and the op record. */
export const finish = `
local function whole()
  if band(fl,16)~=0 then
    local v=call('HMGET',SK,'head',A[2])
    if v[1]~=HEAD then return 'L'..(v[1] and 'taken over by another process' or 'its record is gone') end
    local x=call('ZSCORE',P..'allSessions',SID)
    if not x then return 'Lcleaned by another client' end
    if tonumber(x)<=tonumber(call('TIME')[1]) then return 'Lexpired' end
    local r=v[2]
    if r and A[2]~='' then
      local h,l=sunpack('>I4I4',r)
      if h==QH and l==QL then return 'R'..string.sub(r,9) end
      if h>QH or (h==QH and l>QL) then fail(5,'a late twin of request '..A[2]) end
    end
  end
  local main,extra=body()
  if band(fl,128)~=0 and #K>0 then call('EXISTS',unpack(K)) end
  if band(fl,64)~=0 then call('HSET',SK,A[2],spack('>I4I4',QH,QL)..main) end
  return 'K'..spack('>I4',#main)..main..(extra or '')
end
local fine,answer=pcall(whole)
if fine then return answer end
if type(answer)=='table' and answer.e then return 'E'..string.char(answer.e)..(answer.m or '') end
if type(answer)=='table' then for _,q in ipairs({'o','s','u','c','i'}) do if answer[q] then return string.upper(q)..answer[q] end end end
if type(answer)=='table' then return answer end
return redis.error_reply(tostring(answer))
`;

/** Permissions and ACL (spec/volume.md §14, §15). R 4, W 2, X 1. */
export const access = `
local function aclok(r,a,want)
  local o,g,m,x,nu=sunpack('>I2I2I2I2I4',r)
  if m==65535 then m=7 end
  if UID==a.u then return band(o,want)==want end
  local at=13
  for i=1,nu do
    local id,p=sunpack('>I4I2',r,at) at=at+6
    if id==UID then return band(p,m,want)==want end
  end
  local hit=false
  if ingroup(a.g) then hit=true if band(g,m,want)==want then return true end end
  local ngr=sunpack('>I4',r,at) at=at+4
  for i=1,ngr do
    local id,p=sunpack('>I4I2',r,at) at=at+6
    if ingroup(id) then hit=true if band(p,m,want)==want then return true end end
  end
  return not hit and band(x,want)==want
end
local function acl(id) return call('HGET',P..'acl',F(id)) end
local function allows(a,mask)
  if UID==0 then return band(mask,1)==0 or a.t==2 or band(a.m,73)~=0 end
  if a.aa~=0 and band(a.m,56)~=0 then
    local r=acl(a.aa)
    if r then return aclok(r,a,mask) end
  end
  local m=a.m
  if UID==a.u then m=rshift(m,6) elseif ingroup(a.g) then m=rshift(m,3) end
  return band(m,mask)==mask
end
local function access(a,mask) if CHK~=0 and not allows(a,mask) then fail(13) end end
local function isowner(a) return CHK==0 or UID==0 or UID==a.u end
local function sticky(p,a) if band(p.m,512)~=0 and UID~=0 and UID~=p.u and UID~=a.u then fail(1) end end
local function fixed(a) if band(a.f,3)~=0 then fail(1) end end
local function nosuid(m) if band(m,8)~=0 then return band(m,bnot(3072)) end return band(m,bnot(2048)) end
-- After a write or truncation by a caller without CAP_FSETID: who is not in the group takes sgid away in any case.
local function afterwrite(m,g)
  m=nosuid(m)
  if band(m,1024)~=0 and UID~=0 and not ingroup(g) then m=band(m,bnot(1024)) end
  return m
end
local function aclmode(r)
  local o,g,m,x=sunpack('>I2I2I2I2',r)
  if m==65535 then m=g end
  return band(o,7)*64+band(m,7)*8+band(x,7)
end
local function aclfind(r)
  local id=call('HGET',P..'STEADFS.acl',r)
  if id and call('HGET',P..'acl',id)==r then return tonumber(id) end
  if call('HLEN',P..'acl')<=256 then
    local h=call('HGETALL',P..'acl')
    for i=1,#h,2 do if h[i+1]==r then return tonumber(h[i]) end end
  end
  return nil
end
local function aclput(r)
  local id=call('INCR',P..'aclMaxId')
  call('HSET',P..'acl',id,r)
  call('HSET',P..'STEADFS.acl',r,id)
  return id
end
`;

/** Usage and limits (spec/volume.md §10), exact and in the same script. */
export const usage = `
local function pages(l) local h,lo=sunpack('>I4I4',l) local n=h*1048576+math.ceil(lo/4096) if n==0 then n=1 end return n*4096 end
local function space(a) if a.t==1 then return pages(a.l) end return 4096 end
local function inc(key,field,by) if by~=0 then call('HINCRBY',P..key,field,type(by)=='string' and by or F(by)) end end
local function vol(s,i)
  if s~=0 then call('INCRBY',P..'usedSpace',F(s)) end
  if i~=0 then call('INCRBY',P..'totalInodes',F(i)) end
end
local NOQ=string.rep(string.char(255),16)
local function owner(u,g,s,i)
  if not UG then return end
  for k,id in pairs({user=F(u),group=F(g)}) do
    call('HSETNX',P..k..'Quota',id,NOQ)
    call('HINCRBY',P..k..'QuotaUsedSpace',id,F(s))
    call('HINCRBY',P..k..'QuotaUsedInodes',id,F(i))
  end
end
local qmemo,hasq={},0
local function qdirs(d)
  local m=qmemo[d]
  if m then return m end
  m={} qmemo[d]=m
  if hasq==0 then hasq=DS and call('EXISTS',P..'dirQuota')==1 end
  if not hasq then return m end
  local at=d
  for _=1,100000 do
    if call('HEXISTS',P..'dirQuota',at)==1 then m[#m+1]=at end
    if at=='1' or at=='0' or #at==19 then break end
    local s=call('GET',P..'i'..at)
    if not s or #s<71 then break end
    at=D(string.sub(s,64,71))
  end
  return m
end
local function over(kind,id,s,i)
  local q=call('HGET',P..kind..'Quota',id)
  if not q then return false end
  local ms,mi=sunpack('>i8i8',q)
  if s>0 and ms>0 and (tonumber(call('HGET',P..kind..'QuotaUsedSpace',id)) or 0)+s>ms then return true end
  return i>0 and mi>0 and (tonumber(call('HGET',P..kind..'QuotaUsedInodes',id)) or 0)+i>mi
end
local function dquota(d,s,i,except)
  for _,q in ipairs(qdirs(d)) do
    local skip=false
    for _,x in ipairs(except or {}) do if x==q then skip=true end end
    if not skip and over('dir',q,s,i) then fail(122) end
  end
end
local function quota(u,g,s,i,dirs)
  if s<=0 and i<=0 then return end
  if UG and (over('user',F(u),s,i) or over('group',F(g),s,i)) then fail(122) end
  if s>0 and CAP>0 and (tonumber(call('GET',P..'usedSpace')) or 0)+s>CAP then fail(28) end
  if i>0 and MAXI>0 and (tonumber(call('GET',P..'totalInodes')) or 0)+i>MAXI then fail(28) end
  for _,d in ipairs(dirs) do dquota(d,s,i) end
end
local function adir(d,len,s,i)
  if not DS then return end
  local there
  if i==0 then there=call('HEXISTS',P..'dirUsedInodes',d)==1
  else
    -- A field that this has made tells by its value, which one that was 0 has too.
    there=call('HINCRBY',P..'dirUsedInodes',d,F(i))~=i or call('HEXISTS',P..'dirUsedSpace',d)==1
    if not there then call('HDEL',P..'dirUsedInodes',d) end
  end
  if there then inc('dirDataLength',d,len) inc('dirUsedSpace',d,s) end
  for _,q in ipairs(qdirs(d)) do inc('dirQuotaUsedSpace',q,s) inc('dirQuotaUsedInodes',q,i) end
end
local function flen(a,sign)
  if a.t~=1 then return 0 end
  local h,l=sunpack('>I4I4',a.l)
  if h<2097152 then return sign*(h*4294967296+l) end
  return (sign<0 and '-' or '')..big(h,l)
end
local function aent(d,a,sign) adir(d,flen(a,sign),sign*space(a),sign) end
local function ainode(a,sign) owner(a.u,a.g,sign*space(a),sign) vol(sign*space(a),sign) end
`;

/** Directories as parents. */
export const dirs = `
local function parent(d)
  local p=node(d)
  if not p then fail(2) end
  if p.t~=2 then fail(20) end
  return p
end
local function edge(pd,name)
  local e=call('HGET',P..'d'..pd,name)
  if not e then return nil end
  return string.byte(e),string.sub(e,2,9)
end
local function setedge(pd,name,t,b) call('HSET',P..'d'..pd,name,string.char(t)..b) end
local function insertable(pb,p)
  if isT(pb) then fail(1) end
  if isT(p.p) then fail(2) end
  access(p,3)
  if band(p.f,1)~=0 then fail(1) end
end
local function touch(pb,pd,p,links)
  if isT(pb) then return false end
  local s,n=sunpack('>i8I4',p.mt)
  local age=(NS-s)*1000+(NN-n)/1000000
  if links==0 and age<SKIP and age>=0 then return false end
  p.n=p.n+links p.mt=NOW p.ct=NOW
  return put(pd,p)
end
local function paradd(d,pd,n) call('HINCRBY',P..'p'..d,pd,n) end
local function sustained(d)
  for _,s in ipairs(call('ZRANGE',P..'allSessions',0,-1)) do if call('SISMEMBER',P..'session'..s,d)==1 then return true end end
  return false
end
`;

/** Lengths: truncation and growth. Holes cover existing chunks only; a chunk without records is a hole already. */
export const lengths = `
local CH=67108864
local function hole(d,i,pos,len) if len>0 then call('RPUSHX',P..'c'..d..'_'..F(i),spack('>I4I4I4I4I4I4',pos,0,0,0,0,len)) end end
local function linksof(d,a)
  if a.n==0 then return {} end
  if a.p~=Z8 then return {{D(a.p),1}} end
  local h,out=call('HGETALL',P..'p'..d),{}
  for i=1,#h,2 do local n=tonumber(h[i+1]) if n>0 then out[#out+1]={h[i],n} end end
  return out
end
local function linkdirs(ls) local t={} for i,x in ipairs(ls) do t[i]=x[1] end return t end
-- Checks growth to len (8 bytes); answers what account() needs.
local function grow(d,a,len)
  local ds=pages(len)-pages(a.l)
  local ls=linksof(d,a)
  if ds>0 then quota(a.u,a.g,ds,0,linkdirs(ls)) else for _,x in ipairs(ls) do qdirs(x[1]) end end
  return {ls=ls,ds=ds}
end
local function account(a,len,g)
  if g.ds~=0 then vol(g.ds,0) owner(a.u,a.g,g.ds,0) end
  local plus={t=1,l=len}
  for _,x in ipairs(g.ls) do
    local bytes=flen(plus,1)
    if type(bytes)=='number' and num(a.l)<9007199254740992 then adir(x[1],(bytes-num(a.l))*x[2],g.ds*x[2],0)
    else for _=1,x[2] do adir(x[1],bytes,g.ds,0) adir(x[1],flen(a,-1),0,0) end end
  end
end
-- Answers 'S' and the old length when so many chunks are touched that the caller must cover them in steps first.
local function steps(a,len,done)
  local from,to=math.min(num(a.l),num(len)),math.max(num(a.l),num(len))
  if num(len)<num(a.l) and floor((to-1)/CH)-floor(from/CH)>1000 and done~=a.l then error({s=a.l},0) end
end
local function cover(d,a,len,done)
  local old,new=num(a.l),num(len)
  if old==new then return end
  local from,to=math.min(old,new),math.max(old,new)
  local first,last=floor(from/CH),floor((to-1)/CH)
  if first==last then hole(d,first,from-first*CH,to-from) else
    hole(d,first,from-first*CH,CH-(from-first*CH))
    if done~=a.l then for i=first+1,math.min(last-1,first+1000) do hole(d,i,0,CH) end end
    hole(d,last,0,to-last*CH)
  end
  if new<old and last>first then
    local h=tonumber(call('HGET',P..'STEADFS.chunks',d) or '0')
    if h<last then call('HSET',P..'STEADFS.chunks',d,F(last)) end
  end
end
`;

/** Checks of open(2), and O_TRUNC. */
export const opening = `
local function checkopen(a,flags)
  local acc=band(flags,3)
  local writes=acc~=0 or band(flags,512)~=0
  if writes and a.t==2 then fail(21) end
  local mask=acc==1 and 0 or 4
  if writes then mask=bor(mask,2) end
  if band(flags,32)~=0 then mask=bor(band(mask,3),1) end
  access(a,mask)
  if not writes then return end
  if isHour(a.p) then fail(1) end
  if band(a.f,1)~=0 then fail(1) end
  if band(a.f,2)~=0 and (band(flags,1024)==0 or band(flags,512)~=0) then fail(1) end
end
local function opentrunc(d,a,flags,done)
  if band(flags,512)==0 or a.t~=1 then return end
  local old=a.l
  if old~=Z8 then
    steps(a,Z8,done)
    local g=grow(d,a,Z8)
    cover(d,a,Z8,done)
    account(a,Z8,g)
  end
  a.l=Z8 a.mt=NOW a.ct=NOW
  if UID~=0 then a.m=afterwrite(a.m,a.g) end
  put(d,a)
  log('TRUNCATE',nil,d,D(old),'0','0')
end
`;

/** Removal of links: trash, sustained files, delfiles. */
export const removal = `
local TB=spack('>I4I4',2147483647,268435456)
local TD='9223372032828243968'
-- Where an entry goes in the trash: {name=, b=, d=} (b nil: the hour's folder is to be made); nil when it is really removed.
local function place(pb,pd,name,d,a,skip,hour)
  if skip or not TRASHON or isT(pb) or band(a.f,32)~=0 then return nil end
  local w={name=string.sub(pd..'-'..d..'-'..name,1,255),hour=hour}
  local t,b=edge(TD,hour)
  if b then
    w.b=b w.d=D(b)
    if call('HEXISTS',P..'d'..w.d,w.name)==1 then return nil end
  end
  return w
end
local function folder(w)
  if w.b then return end
  local n=call('INCR',P..'nextTrash')
  w.b=spack('>I4I4',2147483647,268435456+n)
  w.d=D(w.b)
  setedge(TD,w.hour,2,w.b)
  put(w.d,{f=0,t=2,m=365,u=0,g=0,at=NOW,mt=NOW,ct=NOW,n=2,l=L8(4096),r=0,p=TB,aa=0,da=0,ti=0})
  if DS then for _,k in ipairs({'dirUsedInodes','dirDataLength','dirUsedSpace'}) do call('HSET',P..k,w.d,'0') end end
  vol(4096,1)
  log('CREATE',w.d,TD,w.hour,'0','0','2','365','0','','linux','false')
end
-- Whether a file has chunks, as far as a few looks tell; nil: none, but it had more of them once.
local function hasdata(d,a)
  if a.t~=1 then return false end
  local h=call('HGET',P..'STEADFS.chunks',d)
  local last=math.max(0,math.ceil(num(a.l)/67108864)-1)
  if h then last=math.max(last,tonumber(h)) end
  if last>15 then return true end
  for i=0,last do if call('EXISTS',P..'c'..d..'_'..i)==1 then return true end end
  if h then return nil end
  return false
end
local function destroy(d,a,data)
  if data then call('ZADD',P..'delfiles',F(NS),d..':'..D(a.l))
  elseif data==nil and a.t==1 then call('HDEL',P..'STEADFS.chunks',d) end
  call('DEL',P..'i'..d,P..'x'..d)
  if a.t==3 then call('DEL',P..'s'..d) end
  if a.p==Z8 then call('DEL',P..'p'..d) end
  ainode(a,-1)
end
-- plan: everything that is read, so that unlinked() only writes. isopen: '1', '0', or '' when the caller must be asked.
local function planlink(d,b,a,w,expect,isopen)
  local plan={w=w}
  if not w and a.n<=1 then
    if a.t==1 and SID~='0' then
      if expect~=b then error({o=b},0) end
      plan.sustain=isopen=='1'
    end
    if not plan.sustain then plan.data=hasdata(d,a) end
  end
  return plan
end
local KEPT,TRASHED,SUSTAINED,DELETED,GONE=string.char(0),string.char(1),string.char(2),string.char(3),string.char(4)
local function unlinked(pb,pd,name,b,d,old,plan)
  local a=copy(old)
  a.ct=NOW
  aent(pd,old,-1)
  call('HDEL',P..'d'..pd,name)
  local w=plan.w
  if w then
    folder(w)
    setedge(w.d,w.name,old.t,b)
    if old.p~=Z8 then a.p=w.b else paradd(d,w.d,1) paradd(d,pd,-1) end
    local s=put(d,a)
    aent(w.d,old,1)
    return TRASHED..E(b,d,a,s)
  end
  a.n=math.max(0,old.n-1)
  if a.n>0 then
    if old.p==Z8 then paradd(d,pd,-1) end
    return KEPT..E(b,d,a,put(d,a))
  end
  if plan.sustain then
    local s=put(d,a)
    call('SADD',P..'session'..SID,d)
    if old.p==Z8 then call('DEL',P..'p'..d) end
    return SUSTAINED..E(b,d,a,s)
  end
  destroy(d,old,plan.data)
  return (plan.data and DELETED or GONE)..E(b,d,a)
end
local STATS={'dirDataLength','dirUsedSpace','dirUsedInodes'}
local DQUOTA={'dirQuota','dirQuotaUsedSpace','dirQuotaUsedInodes'}
local function dirremoved(pb,pd,name,b,d,old,w)
  local a=copy(old)
  a.ct=NOW
  if pd~=TD then aent(pd,old,-1) end
  for _,k in ipairs(STATS) do call('HDEL',P..k,d) end
  if hasq~=false or not DS then for _,k in ipairs(DQUOTA) do call('HDEL',P..k,d) end end
  call('HDEL',P..'d'..pd,name)
  if w then
    folder(w)
    a.p=w.b
    setedge(w.d,w.name,2,b)
    local s=put(d,a)
    aent(w.d,old,1)
    return TRASHED..E(b,d,a,s)
  end
  call('DEL',P..'i'..d,P..'x'..d)
  -- Hourly folders are nobody's.
  if pd==TD then vol(-4096,-1) else ainode(old,-1) end
  a.n=0
  return GONE..E(b,d,a)
end
-- An entry whose inode is missing (a damaged volume): only the entry can go.
local function dangling(pd,name,b,d,t)
  call('HDEL',P..'d'..pd,name)
  log('UNLINK',d,pd,name,'0','false','false')
  return GONE..E(b,d,{f=0,t=t,m=0,u=0,g=0,at=NOW,mt=NOW,ct=NOW,n=0,l=Z8,r=0,p=L8(1),aa=0,da=0,ti=0})
end
local function removable(pb,pd,p)
  if pd==TD or (isT(pb) and UID~=0) then fail(1) end
  fixed(p)
end
`;
