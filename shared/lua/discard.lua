#!lua flags=allow-oom
--+ held
-- Remove a job that could not be put in the queue. A job that a worker holds, or that a repeated submission got as its
-- reply, is kept.
local id = ARGV[1]
local f = redis.call('HMGET', job(id), 'state', 'model', 'lane', 'total', 'owner', 'promised', 'idem', 'bytes')
if f[1] ~= 'queued' or f[6] then return 0 end
redis.call('ZREM', 'cq:open:' .. f[2], id)
redis.call('ZREM', 'cq:queued:' .. f[2] .. ':' .. f[3], id)
redis.call('ZREM', 'cq:jobs:' .. f[5], id)
redis.call('HINCRBY', 'cq:load', f[2] .. ':' .. f[3], -tonumber(f[4]))
if f[8] then hold(f[5], -tonumber(f[8])) end
redis.call('DEL', job(id), 'cq:in:' .. id, 'cq:watch:' .. id)
if f[7] then redis.call('DEL', f[7]) end
return 1
