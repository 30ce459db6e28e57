#!lua
--+ held
-- Accept a job, or refuse it: {'ok', created} {'full', load} {'held', …} {'same', id} {'reused', id}.
-- The one script that may not run when the server has reached its maxmemory.
local id, model, lane, total, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local deadline_in, owner, listed = tonumber(ARGV[6]), ARGV[7], ARGV[8]
local idempotency, digest, ttl, inputs = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local bytes, max_bytes, share = tonumber(ARGV[13]), tonumber(ARGV[14]), tonumber(ARGV[15])

if idempotency ~= '' then
  local first = repeated(owner, idempotency, digest)
  if first then return first end
end

local place = model .. ':' .. lane
local load = tonumber(redis.call('HGET', 'cq:load', place) or '0')
if load > 0 and load + total > limit then return {'full', load} end
local t = now()
local refusal = admit(owner, bytes, max_bytes, share, t)
if refusal then return refusal end

local fields = {'id', id, 'model', model, 'lane', lane, 'total', int(total), 'owner', owner, 'state', 'queued',
                'created', int(t), 'sent', int(t), 'attempts', '0', 'size', int(#inputs),
                'bytes', int(bytes)}
if deadline_in > 0 then
  fields[#fields + 1] = 'deadline'
  fields[#fields + 1] = int(t + deadline_in)
end
if idempotency ~= '' then
  fields[#fields + 1] = 'idem'
  fields[#fields + 1] = idem(owner, idempotency)
end
for i = 16, #ARGV do fields[#fields + 1] = ARGV[i] end
redis.call('HSET', job(id), unpack(fields))
redis.call('SET', 'cq:in:' .. id, inputs)
redis.call('ZADD', 'cq:open:' .. model, int(t), id)
redis.call('ZADD', 'cq:queued:' .. place, int(t), id)
redis.call('HINCRBY', 'cq:load', place, int(total))
if idempotency ~= '' then redis.call('SET', idem(owner, idempotency), id .. digest) end
if listed == '1' then list(owner, id, int(t), tonumber(ttl)) end
return {'ok', int(t)}
