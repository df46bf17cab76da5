/** Scripts of flock and fcntl locks (spec/volume.md §8). Arguments begin at ARGV[5]. */

/** A field of lock hash belongs to a session that no list knows any more: a peer crashed and its cleaner forgot (shared flocks of 1.4.1). */
const deadSession = `
local function gone(field)
  local s=string.match(field,'^(%d+)_')
  return s and s~=SID and not call('ZSCORE',P..'allSessions',s) and not call('ZSCORE','sessions',s)
end
local function held(key)
  for _,f in ipairs(call('HKEYS',key)) do if string.sub(f,1,#SID+1)==SID..'_' then return true end end
  return false
end
local function remember(key) call('SADD',P..'locked'..SID,key) end
local function forget(key) if not held(key) then call('SREM',P..'locked'..SID,key) end end
`;

/** KEYS: lockf{ino}. ARGV: inode d, owner (16 upper-case hex digits), "R"/"W"/"U". */
export const flock = `${deadSession}
local function body()
  local d,type=A[5],A[7]
  local key=P..'lockf'..d
  local own=SID..'_'..A[6]
  if type=='U' then
    if call('HDEL',key,own)>0 then
      forget(key)
      log('FLOCK',nil,d,tostring(A[8]),type)
    end
    return ''
  end
  if call('EXISTS',P..'i'..d)==0 then fail(2) end
  local h=call('HGETALL',key)
  local dead={}
  for i=1,#h,2 do
    if h[i]~=own and (type=='W' or h[i+1]=='W') then
      if gone(h[i]) then dead[#dead+1]=h[i] else fail(11) end
    end
  end
  for _,f in ipairs(dead) do call('HDEL',key,f) end
  call('HSET',key,own,type)
  remember(key)
  log('FLOCK',nil,d,A[8],type)
  return ''
end
`;

/** KEYS: lockp{ino}. ARGV: inode d, owner hex, record of 24 bytes, owner decimal. Ends are 64 bits: compared and stepped as halves. */
export const setlk = `${deadSession}
local function lt(x,y)
  local h,l=sunpack('>I4I4',x)
  local h2,l2=sunpack('>I4I4',y)
  return h<h2 or (h==h2 and l<l2)
end
local function plus(x)
  local h,l=sunpack('>I4I4',x)
  if l==4294967295 then return spack('>I4I4',h+1,0) end
  return spack('>I4I4',h,l+1)
end
local function minus(x)
  local h,l=sunpack('>I4I4',x)
  if l==0 then return spack('>I4I4',h-1,4294967295) end
  return spack('>I4I4',h,l-1)
end
local function each(list,f)
  for at=1,#list-23,24 do
    local t,pid,s,e=sunpack('>I4I4c8c8',list,at)
    f(t,pid,s,e)
  end
end
local function body()
  local d=A[5]
  local key=P..'lockp'..d
  local own=SID..'_'..A[6]
  local type,pid,start,stop=sunpack('>I4I4c8c8',A[7])
  local h=call('HGETALL',key)
  local dead,mine={},nil
  if type~=2 and call('EXISTS',P..'i'..d)==0 then fail(2) end
  for i=1,#h,2 do
    if h[i]==own then mine=h[i+1]
    elseif type~=2 then
      local hit=false
      each(h[i+1],function(t,_,s,e) if not lt(stop,s) and not lt(e,start) and (t==1 or type==1) then hit=true end end)
      if hit then if gone(h[i]) then dead[#dead+1]=h[i] else fail(11) end end
    end
  end
  if not mine and type==2 then return '' end
  local parts={}
  each(mine or '',function(t,p,s,e)
    if lt(e,start) or lt(stop,s) then parts[#parts+1]={t,p,s,e} return end
    if lt(s,start) then parts[#parts+1]={t,p,s,minus(start)} end
    if lt(stop,e) then parts[#parts+1]={t,p,plus(stop),e} end
  end)
  if type~=2 then parts[#parts+1]={type,pid,start,stop} end
  table.sort(parts,function(x,y) return lt(x[3],y[3]) end)
  local merged={}
  for _,x in ipairs(parts) do
    local l=merged[#merged]
    if l and l[1]==x[1] and l[2]==x[2] and plus(l[4])==x[3] then l[4]=x[4] else merged[#merged+1]=x end
  end
  for i,x in ipairs(merged) do merged[i]=spack('>I4I4c8c8',x[1],x[2],x[3],x[4]) end
  -- writes
  for _,f in ipairs(dead) do call('HDEL',key,f) end
  if #merged>0 then call('HSET',key,own,table.concat(merged)) remember(key)
  else call('HDEL',key,own) forget(key) end
  log('SETLK',nil,d,A[8],string.sub('RWU',type+1,type+1),D(start),D(stop),F(pid))
  return ''
end
`;
