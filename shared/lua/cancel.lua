-- End a job by its owner's word: {state it is in now, 1 if it was this call that ended it}, or false if there is none.
local id, owner = ARGV[1], ARGV[2]
local f = redis.call('HMGET', job(id), 'state', 'owner')
if not f[1] or f[2] ~= owner then return false end
if close(id, 'cancelled', ERRORS.cancelled, '', now()) == 1 then return {'cancelled', 1} end
return {f[1], 0}
