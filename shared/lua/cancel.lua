-- End a job by its owner's word: {'cancelled'}, or {state} if it has ended, or {'gone'}.
local id, owner = ARGV[1], ARGV[2]
local f = redis.call('HMGET', job(id), 'state', 'owner')
if not f[1] or f[2] ~= owner then return {'gone'} end
if close(id, 'cancelled', ERRORS.cancelled, '', now()) == 1 then return {'cancelled'} end
return {f[1]}
