#!lua flags=allow-oom
--+ held
-- Remove jobs of synchronous requests that have succeeded and are answered: nobody asks for them any more.
local freed = {} -- bytes by the bucket that they are in, and by owner

local function free(owner, bytes, till)
  local name = bucket(till)
  freed[name] = freed[name] or {}
  freed[name][owner] = (freed[name][owner] or 0) + bytes
end

for _, id in ipairs(ARGV) do
  local f = redis.call('HMGET', job(id), 'state', 'reply', 'owner', 'ttl', 'deadline', 'finished', 'idem')
  if f[1] == 'succeeded' and f[2] and f[2] ~= '' and not f[7] then
    local ttl, finished, size = tonumber(f[4]) or 60000, tonumber(f[6]), redis.call('STRLEN', 'cq:out:' .. id)
    free(f[3] or '', RECORD, finished + ttl)
    if size > 0 then free(f[3] or '', size, finished + result_ttl(ttl, f[5], finished)) end
    redis.call('DEL', job(id), 'cq:out:' .. id, 'cq:watch:' .. id)
  end
end
for name, owners in pairs(freed) do
  for owner, bytes in pairs(owners) do
    if tonumber(redis.call('HGET', name, owner) or '0') >= bytes then -- else it was swept
      if redis.call('HINCRBY', name, owner, -int(bytes)) == 0 then redis.call('HDEL', name, owner) end
      hold(owner, -bytes)
    end
  end
end
return 1
