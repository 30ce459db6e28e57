#!lua flags=allow-oom
--+ held transitions
-- Cancel a job for its owner: {the state that it has now, 1 if this call has ended it}. False if there is no such job.
local id, owner = ARGV[1], ARGV[2]
local f = redis.call('HMGET', job(id), 'state', 'owner')
if not f[1] or f[2] ~= owner then return false end
if close(id, 'cancelled', ERRORS.cancelled, '', now()) == 1 then return {'cancelled', 1} end
return {f[1], 0}
