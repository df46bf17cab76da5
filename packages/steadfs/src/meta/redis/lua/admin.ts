/** Scripts on the volume, sessions, counters and statistics. These have no op record unless said; arguments begin at ARGV[1]. */

/** ARGV: setting, root's attributes or "" (existing volume), attributes of .trash or "", keys that are dropped. */
export const init = `
for i=4,#ARGV do call('DEL',P..ARGV[i]) end
if ARGV[3]~='' then call('SETNX',P..'i9223372032828243968',ARGV[3]) end
if ARGV[2]~='' then call('SET',P..'i1',ARGV[2]) end
call('SET',P..'setting',ARGV[1])
return 1
`;

const logSession = String.raw`
local function esc(s) return (string.gsub(s,'[^%w !#$&\'*+%-./:;<=>?@%[%]^_{|}~\96]',function(c) return fmt('%%%02X',string.byte(c)) end)) end
local function log(stamp,text,sid)
  if stamp=='' then return end
  call('RPUSH',P..'txnLog',stamp..'|'..text..'|('..sid..',0)')
  call('INCR',P..'txnLastLog')
end
`;

/** ARGV: info JSON, header without epoch (16 bytes), seconds to live, time stamp of the change log or "". Answers sid. */
export const newSession = `${logSession}
local sid=call('INCR',P..'nextsession')
local key=P..'STEADFS.s'..F(sid)
local expire=F(tonumber(call('TIME')[1])+tonumber(ARGV[3]))
call('DEL',key)
call('HSET',key,'head',ARGV[2]..spack('>I4',1))
call('ZADD',P..'allSessions',expire,F(sid))
call('HSET',P..'sessionInfos',F(sid),ARGV[1])
log(ARGV[4],'NEWSESSION('..F(sid)..','..expire..','..esc(ARGV[1])..')',F(sid))
return sid
`;

/** ARGV: sid, incarnation (16 bytes), known epoch, info JSON, seconds to live. Answers the new epoch, or why not. */
export const adoptSession = `
local key=P..'STEADFS.s'..ARGV[1]
local head=call('HGET',key,'head')
if not head or #head~=20 or string.sub(head,1,16)~=ARGV[2] then return 'its record is missing or another one' end
local epoch=sunpack('>I4',head,17)
if epoch<tonumber(ARGV[3]) then return 'its record is older than this process' end
local x=call('ZSCORE',P..'allSessions',ARGV[1])
local now=tonumber(call('TIME')[1])
if not x then return 'it was cleaned by another client' end
if tonumber(x)<=now then return 'it has expired' end
call('HSET',key,'head',ARGV[2]..spack('>I4',epoch+1))
call('ZADD',P..'allSessions',F(now+tonumber(ARGV[5])),ARGV[1])
call('HSET',P..'sessionInfos',ARGV[1],ARGV[4])
return epoch+1
`;

/** ARGV: sid, header, seconds to live, info JSON. Answers "" or why the session is lost. */
export const heartbeat = `
local head=call('HGET',P..'STEADFS.s'..ARGV[1],'head')
if head~=ARGV[2] then return head and 'taken over by another process' or 'its record is gone' end
local x=call('ZSCORE',P..'allSessions',ARGV[1])
local now=tonumber(call('TIME')[1])
if not x then return 'cleaned by another client' end
if tonumber(x)<=now then return 'expired' end
call('ZADD',P..'allSessions',F(now+tonumber(ARGV[3])),ARGV[1])
call('HSETNX',P..'sessionInfos',ARGV[1],ARGV[4])
return ''
`;

/** ARGV: sid, name of a lock hash (with prefix). Removes the session's fields. */
export const dropLocks = `
local mine=ARGV[1]..'_'
for _,f in ipairs(call('HKEYS',ARGV[2])) do if string.sub(f,1,#mine)==mine then call('HDEL',ARGV[2],f) end end
call('SREM',P..'locked'..ARGV[1],ARGV[2])
return 1
`;

/** ARGV: sid, time stamp or "", "1" when the legacy list may be asked. */
export const dropSession = `${logSession}
if call('SCARD',P..'session'..ARGV[1])>0 or call('SCARD',P..'locked'..ARGV[1])>0 then return 0 end
call('HDEL',P..'sessionInfos',ARGV[1])
local n=call('ZREM',P..'allSessions',ARGV[1])
if n==0 and ARGV[3]=='1' then call('ZREM','sessions',ARGV[1]) end
call('DEL',P..'STEADFS.s'..ARGV[1])
log(ARGV[2],'CLEANSESSION('..ARGV[1]..')','0')
return 1
`;

/** ARGV: counter, period in seconds, time stamp or "", sid. Answers 1 when the stored time was old enough; it is now then. */
export const claimDuty = `${logSession}
local now=tonumber(call('TIME')[1])
local old=tonumber(call('GET',P..ARGV[1]) or '0')
if old>now-0.9*tonumber(ARGV[2]) then return 0 end
call('SET',P..ARGV[1],F(now))
log(ARGV[3],'SET('..ARGV[1]..','..F(now)..')',ARGV[4])
return 1
`;

/** Counter with its change-log record. ARGV: key, delta, name in the log, time stamp or "", sid. Answers the new value. */
export const addCounter = `${logSession}
local v=call('INCRBY',P..ARGV[1],ARGV[2])
log(ARGV[4],'INCR_COUNTER('..ARGV[3]..','..ARGV[2]..')',ARGV[5])
return v
`;

/**
 * KEYS: d{parent}, i{parent}. ARGV: parent d, name. Result: type u8 and entry; "" when there is no such
 * name, type and inode when its inode is missing; 'E' and an errno.
 */
export const lookup = `
local v=call('HGET',KEYS[1],ARGV[2])
if not v then
  local p=node(ARGV[1])
  if not p then return 'E'..string.char(2) end
  if p.t~=2 then return 'E'..string.char(20) end
  return ''
end
local b=string.sub(v,2,9)
local d=D(b)
local a=node(d)
if not a then return string.sub(v,1,9) end
return string.sub(v,1,1)..E(b,d,a)
`;

/** KEYS: i{ino}. ARGV: inode b. Result: entry or "". */
export const getattr = `
local d=D(ARGV[1])
local a=node(d)
if not a then return '' end
return E(ARGV[1],d,a)
`;

/** ARGV: inode d, `from u32 to u32`. Result: indexes u32 of the chunks that exist. */
export const existingChunks = `
local from,to=sunpack('>I4I4',ARGV[2])
local out={}
for i=from,to do if call('EXISTS',P..'c'..ARGV[1]..'_'..F(i))==1 then out[#out+1]=spack('>I4',i) end end
return table.concat(out)
`;

/** KEYS: i{dir}, d{dir}. ARGV: inode d, statistics length, space, inodes, attributes seen, HLEN seen. Stores statistics that were counted. */
export const setDirStat = `
if call('GET',KEYS[1])~=ARGV[5] or call('HLEN',KEYS[2])~=tonumber(ARGV[6]) then return 0 end
if call('HEXISTS',P..'dirUsedInodes',ARGV[1])==1 then return 0 end
call('HSET',P..'dirDataLength',ARGV[1],ARGV[2])
call('HSET',P..'dirUsedSpace',ARGV[1],ARGV[3])
call('HSET',P..'dirUsedInodes',ARGV[1],ARGV[4])
return 1
`;

/** ARGV: kind, key, max space or "", max inodes or "", used space or "", used inodes or "". */
export const setQuota = `
local q=P..ARGV[1]..'Quota'
local id=ARGV[2]
local old=call('HGET',q,id)
local s,i=-1,-1
if old then s,i=sunpack('>i8i8',old) end
if ARGV[3]~='' then s=tonumber(ARGV[3]) end
if ARGV[4]~='' then i=tonumber(ARGV[4]) end
local function limit(n) if n<0 then return string.rep(string.char(255),8) end return L8(n) end
call('HSET',q,id,limit(s)..limit(i))
for k,v in pairs({UsedSpace=ARGV[5],UsedInodes=ARGV[6]}) do
  if v~='' then call('HSET',q..k,id,v) else call('HSETNX',q..k,id,'0') end
end
return 1
`;
