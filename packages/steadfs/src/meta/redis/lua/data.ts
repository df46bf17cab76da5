/** Scripts on file data and dead data, in the order of checks of meta/ops/data.ts. Arguments begin at ARGV[5]. */

/**
 * KEYS: i{ino}, c{ino}_{index}. ARGV: inode b, index, records of 24 bytes, end 8, mtime 12, kill suid and sgid "1"/"", ctime 12. Result:
 * `records f64`, entry.
 */
export const write = `
local function isafter(x,y)
  local s,n=sunpack('>i8I4',x)
  local s2,n2=sunpack('>i8I4',y)
  return s>s2 or (s==s2 and n>n2)
end
local function body()
  local b=A[5]
  local d=D(b)
  local a=node(d)
  if not a then fail(2) end
  if a.t~=1 then fail(1) end
  local g
  local old=a
  a=copy(old)
  if num(A[8])>num(old.l) then g=grow(d,old,A[8]) a.l=A[8] end
  -- writes
  if g then account(old,A[8],g) end
  local key=P..'c'..d..'_'..A[6]
  local n,refs=0,{}
  for at=1,#A[7],24 do
    local r=string.sub(A[7],at,at+23)
    n=call('RPUSH',key,r)
    local id=string.sub(r,5,12)
    if id~=Z8 then
      local f='k'..D(id)..'_'..F(sunpack('>I4',r,13))
      refs[f]=(refs[f] or 0)+1
    end
    if CL then
      local ms,mn=sunpack('>i8I4',A[9])
      log('WRITE',F(n-1),d,A[6],F(sunpack('>I4',r,1)),D(id),F(sunpack('>I4',r,21)),F(ms),F(mn))
    end
  end
  for f,k in pairs(refs) do if k>1 then call('HINCRBY',P..'sliceRef',f,k-1) end end
  if A[10]~='' then a.m=nosuid(a.m) end
  -- ctime is that of the write, which programs have seen since, not the commit's; that of a later chmod stays.
  if isafter(A[11],old.ct) then a.ct=A[11] end
  a.mt=A[9]
  put(d,a)
  return spack('>d',n)..E(b,d,a)
end
`;

/**
 * KEYS: i{in}, i{out}. ARGV: in b, offset 8, out b, out offset 8, `length f64`. Reads, clips and pushes in one script, so that no compaction
 * can come between. Result: `copied f64`, entry of out.
 */
export const copyRange = `
-- The pieces of a chunk, newest record first filling what is uncovered: {pos, record, off, len} in order of position.
local function build(list)
  local cov={}
  for k=#list,1,-1 do
    local r=list[k]
    local pos,_,_,_,off,len=sunpack('>I4I4I4I4I4I4',r)
    if len>0 then
      local stop=pos+len
      local lo,hi=1,#cov+1
      while lo<hi do
        local mid=floor((lo+hi)/2)
        if cov[mid][1]+cov[mid][4]<=pos then lo=mid+1 else hi=mid end
      end
      local added,at,nx={},pos,lo
      while at<stop do
        local c=cov[nx]
        local till=c and math.min(stop,c[1]) or stop
        if at<till then added[#added+1]={at,r,off+at-pos,till-at} end
        if not c or c[1]>=stop then break end
        added[#added+1]=c
        at=c[1]+c[4]
        nx=nx+1
      end
      local out={}
      for i=1,lo-1 do out[i]=cov[i] end
      for _,x in ipairs(added) do out[#out+1]=x end
      for i=nx,#cov do out[#out+1]=cov[i] end
      cov=out
    end
  end
  return cov
end
local function body()
  local sd,td=D(A[5]),D(A[7])
  local off,toff=num(A[6]),num(A[8])
  local want=sunpack('>d',A[9])
  local sa=node(sd)
  local ta=node(td)
  if not sa or not ta then fail(2) end
  if sa.t~=1 or ta.t~=1 then fail(22) end
  if band(ta.f,3)~=0 then fail(1) end
  access(ta,2)
  if sd==td and off<toff+want and toff<off+want then fail(22) end
  local slen=num(sa.l)
  if off>=slen or want<=0 then return spack('>d',0)..E(A[7],td,ta) end
  if toff+math.min(want,slen-off)>9007199254740991 then fail(27) end
  local left,done,records,n=math.min(want,slen-off),0,0,0
  local pushes={}
  local function piece(r,ro,target,len)
    local at=0
    while at<len do
      local i=floor((target+at)/CH)
      local pos=target+at-i*CH
      local part=math.min(len-at,CH-pos)
      records=records+1
      if r then pushes[#pushes+1]={i,spack('>I4',pos)..string.sub(r,5,16)..spack('>I4I4',string.sub(r,5,12)==Z8 and 0 or ro+at,part),r}
      else pushes[#pushes+1]={i,spack('>I4I4I4I4I4I4',pos,0,0,0,0,part)} end
      at=at+part
    end
  end
  while left>0 and n<64 and records<2000 do
    n=n+1
    local at=off+done
    local i=floor(at/CH)
    local from=at-i*CH
    local to=math.min(CH,from+left)
    local cur=from
    local base=toff+done-from
    for _,x in ipairs(build(call('LRANGE',P..'c'..sd..'_'..F(i),0,-1))) do
      local s,e=math.max(x[1],from),math.min(x[1]+x[4],to)
      if s<e then
        if s>cur then piece(nil,0,base+cur,s-cur) end
        piece(x[2],x[3]+s-x[1],base+s,e-s)
        cur=e
      end
    end
    if cur<to then piece(nil,0,base+cur,to-cur) end
    done=done+to-from
    left=left-(to-from)
  end
  local old=ta
  ta=copy(old)
  local g
  local stop=toff+done
  if stop>num(old.l) then ta.l=L8(stop) g=grow(td,old,ta.l) end
  -- writes
  if g then account(old,ta.l,g) end
  for _,x in ipairs(pushes) do
    call('RPUSH',P..'c'..td..'_'..F(x[1]),x[2])
    local id=x[3] and string.sub(x[3],5,12)
    if id and id~=Z8 then call('HINCRBY',P..'sliceRef','k'..D(id)..'_'..F(sunpack('>I4',x[3],13)),1) end
  end
  ta.mt=NOW ta.ct=NOW
  if UID~=0 then ta.m=nosuid(ta.m) end
  put(td,ta)
  log('COPYFILERANGE',D(ta.l),sd,F(off),td,F(toff),F(done))
  return spack('>d',done)..E(A[7],td,ta)
end
`;

/**
 * KEYS: i{ino}, c{ino}_{index}. ARGV: inode b, index, original records, skipped, replacement record. Result: "1" or "0". The inode's attributes are
 * written as they are, so that a copy or clone of the Go client that has read the old list is refused by its WATCH. Old slices are delayed
 * where there is trash, else dereferenced.
 */
export const compact = `
local function body()
  local d=D(A[5])
  local key=P..'c'..d..'_'..A[6]
  local orig,skipped,repl=A[7],tonumber(A[8]),A[9]
  local count=#orig/24
  local now=count>0 and call('LRANGE',key,0,count-1) or {}
  local s=call('GET',P..'i'..d)
  local id=string.sub(repl,5,12)
  local field='k'..D(id)..'_'..F(sunpack('>I4',repl,13))
  if not s or count==0 or table.concat(now)~=orig then
    if id~=Z8 then call('HSET',P..'sliceRef',field,'-1') end
    return '0'
  end
  local old={}
  for i=skipped+1,count do
    local r=now[i]
    local x=string.sub(r,5,12)
    if x~=Z8 then old[#old+1]=string.sub(r,5,16) end
  end
  -- writes
  call('LTRIM',key,count,-1)
  call('LPUSH',key,repl)
  for i=skipped,1,-1 do call('LPUSH',key,now[i]) end
  if not TRASHON then
    for _,o in ipairs(old) do call('HINCRBY',P..'sliceRef','k'..D(o)..'_'..F(sunpack('>I4',o,9)),-1) end
  elseif #old>0 then
    -- A chunk that became a hole has no new slice to name the entry: the first old one does.
    local name=id~=Z8 and id or string.sub(old[1],1,8)
    call('HSET',P..'delSlices',D(name)..'_'..F(NS),table.concat(old))
  end
  call('SET',P..'i'..d,s)
  local pos=sunpack('>I4',repl)
  log('COMPACTCHUNK',nil,d,A[6],F(skipped),F(count),F(pos),D(id),F(sunpack('>I4',repl,13)))
  return '1'
end
`;

/** KEYS: i{ino}. ARGV: inode b. Result: `1 length f64` when there is data to delete, else "". */
export const release = `
local function body()
  local d=D(A[5])
  local a=node(d)
  local others=false
  for _,s in ipairs(call('ZRANGE',P..'allSessions',0,-1)) do
    if s~=A[6] and call('SISMEMBER',P..'session'..s,d)==1 then others=true end
  end
  local data=a and hasdata(d,a)
  -- writes
  call('SREM',P..'session'..A[6],d)
  if not a or a.n>0 or others then return '' end
  destroy(d,a,data)
  log('DELSUSTAINED',nil,A[6],d)
  if not data then return '' end
  return spack('>d',num(a.l))
end
`;

const dereference = `
local dead={}
local function deref(id,size)
  if id~=Z8 and call('HINCRBY',P..'sliceRef','k'..D(id)..'_'..F(size),-1)<0 then dead[#dead+1]=id..spack('>I4',size) end
end
`;

/**
 * Deletes chunks that exist among `from..to`. KEYS: none of its own. ARGV: inode d, `from u32 to u32`, "1" when the file is done with that, its length d. Result:
 * `next u32` (where to go on), dead slices of 12 bytes.
 */
export const deleteChunks = `${dereference}
local function body()
  local d=A[5]
  local from,to=sunpack('>I4I4',A[6])
  local i,records=from,0
  while i<=to and records<2000 do
    local key=P..'c'..d..'_'..F(i)
    local list=call('LRANGE',key,0,-1)
    if #list>0 then
      records=records+#list
      call('DEL',key)
      for _,r in ipairs(list) do deref(string.sub(r,5,12),(sunpack('>I4',r,13))) end
      log('DELCHUNK',nil,d,F(i))
    end
    i=i+1
  end
  if A[7]=='1' and i>to then
    call('ZREM',P..'delfiles',d..':'..A[8])
    call('HDEL',P..'STEADFS.chunks',d)
  end
  return spack('>I4',i)..table.concat(dead)
end
`;

/** Drops the references of delayed entries. ARGV: before, then their fields. Result: dead slices. */
export const expireDelayed = `${dereference}
local function body()
  for i=6,#A do
    local v=call('HGET',P..'delSlices',A[i])
    if v then
      for at=1,#v-11,12 do deref(string.sub(v,at,at+7),(sunpack('>I4',v,at+8))) end
      call('HDEL',P..'delSlices',A[i])
      log('CLEANUP_DELAYED_SLICES',nil,string.match(A[i],'^%d+'),A[5])
    end
  end
  return table.concat(dead)
end
`;

/** Forgets slices whose objects are gone. ARGV: fields of sliceRef, each removed only while it still has no reference. */
export const forgetSlices = `
local function body()
  for i=5,#A do
    local v=call('HGET',P..'sliceRef',A[i])
    if v and tonumber(v)<0 then
      call('HDEL',P..'sliceRef',A[i])
      local id,size=string.match(A[i],'^k(%d+)_(%d+)$')
      if id then log('DELETESLICE',nil,id,size) end
    end
  end
  return ''
end
`;

const cloneParent = `
local function cloneparent(pb,pd,name)
  local p=parent(pd)
  if isT(pb) or isT(p.p) or band(p.f,1)~=0 then fail(1) end
  access(p,3)
  if edge(pd,name) then fail(17) end
  return p
end
`;

/**
 * KEYS: i{source}, i{new}, d{parent}, i{parent}. ARGV: source b, new b, parent b, name or "" (detached directory), "p" preserve or "", umask, "" or a
 * byte and the indexes u32 of the source's chunks. Result: entry. Extra: the parent. Answers 'C' and the length when there may be very many chunks and the
 * caller has not listed them.
 */
export const clone = `${cloneParent}
local function body()
  local sb,nb,pb,name=A[5],A[6],A[7],A[8]
  local sd,nd,pd=D(sb),D(nb),D(pb)
  local a=node(sd)
  if not a then fail(2) end
  access(a,a.t==2 and 5 or 4)
  local p
  if name~='' then p=cloneparent(pb,pd,name) end
  a.f=band(a.f,bnot(3))
  local x=call('HGETALL',P..'x'..sd)
  local target=a.t==3 and call('GET',P..'s'..sd)
  a.n=a.t==2 and 2 or 1
  a.p=pb
  if A[9]=='' then
    a.u=UID a.g=GID
    a.m=band(a.m,bnot(tonumber(A[10])))
    a.at=NOW a.mt=NOW a.ct=NOW
  end
  local s=space(a)
  if name~='' then quota(a.u,a.g,s,1,{pd}) else quota(a.u,a.g,s,1,{}) end
  local chunks={}
  if a.t==1 then
    local last=math.ceil(num(a.l)/67108864)-1
    if last>1000 and A[11]=='' then error({c=a.l},0) end
    local function take(i)
      local l=call('LRANGE',P..'c'..sd..'_'..F(i),0,-1)
      if #l>0 then chunks[#chunks+1]={i,l} end
    end
    if last>1000 then for at=2,#A[11],4 do take((sunpack('>I4',A[11],at))) end
    else for i=0,last do take(i) end end
  end
  if call('EXISTS',P..'i'..nd)==1 then error({i=nb},0) end
  -- writes
  put(nd,a)
  ainode(a,1)
  for i=1,#x,2 do call('HSET',P..'x'..nd,x[i],x[i+1]) end
  if target then call('SET',P..'s'..nd,target) end
  if a.t==2 and DS then for _,k in ipairs({'dirDataLength','dirUsedSpace','dirUsedInodes'}) do call('HSET',P..k,nd,'0') end end
  for _,c in ipairs(chunks) do
    for _,r in ipairs(c[2]) do
      call('RPUSH',P..'c'..nd..'_'..F(c[1]),r)
      local id=string.sub(r,5,12)
      if id~=Z8 then call('HINCRBY',P..'sliceRef','k'..D(id)..'_'..F(sunpack('>I4',r,13)),1) end
    end
  end
  if name~='' then
    setedge(pd,name,a.t,nb)
    if a.t==2 then p.n=p.n+1 end
    p.mt=NOW p.ct=NOW
    put(pd,p)
    aent(pd,a,1)
  else call('ZADD',P..'detachedNodes',F(NS),nd) end
  log('CLONE',nd,sd,pd,name,nd,A[9]=='' and '0' or '2',A[10],tostring(name==''))
  return E(nb,nd,a),p and E(pb,pd,p) or ''
end
`;

/** KEYS: d{parent}, i{parent}, i{ino}. ARGV: detached b, parent b, name. Result: entry. Extra: the parent. */
export const attach = `${cloneParent}
local function body()
  local b,pb,name=A[5],A[6],A[7]
  local d,pd=D(b),D(pb)
  local a=node(d)
  if not a then fail(2) end
  local p=cloneparent(pb,pd,name)
  if not call('ZSCORE',P..'detachedNodes',d) then fail(2) end
  dquota(pd,space(a),1)
  a.p=pb
  setedge(pd,name,a.t,b)
  call('ZREM',P..'detachedNodes',d)
  put(d,a)
  p.n=p.n+1 p.mt=NOW p.ct=NOW
  put(pd,p)
  aent(pd,a,1)
  log('ATTACH',nil,d,pd,name)
  return E(b,d,a),E(pb,pd,p)
end
`;
