#!lua
--+ held
-- Accept a run that workers lead, or refuse it: {'ok', created} {'full', open runs} {'busy', id} {'held', …} {'same', id}
-- {'reused', id}. Such a run is in no lane: an earlier release never sees it.
local id, model, lane, owner, limit = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local deadline_in, idempotency, digest, ttl, inputs = tonumber(ARGV[6]), ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local bytes, max_bytes, share, output, kind = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13]), ARGV[14], ARGV[15]

if idempotency ~= '' then
  local first = repeated(owner, idempotency, digest)
  if first then return first end
end

local unfinished = 0
for _, other in ipairs(redis.call('ZRANGE', 'cq:runs', 0, -1)) do
  local f = redis.call('HMGET', job(other), 'state', 'output', 'owner')
  if may(f[1], 'cancelled') then
    unfinished = unfinished + 1
    if f[2] == output then return {'busy', f[3] == owner and other or ''} end
  end
end
if unfinished >= limit then return {'full', unfinished} end
local t = now()
local refusal = admit(owner, bytes, max_bytes, share, t)
if refusal then return refusal end

redis.call('HSET', job(id), 'id', id, 'kind', kind, 'model', model, 'lane', lane, 'total', '0', 'owner', owner,
           'state', 'queued', 'created', int(t), 'attempts', '0', 'size', int(#inputs), 'bytes', int(bytes),
           'ttl', ttl, 'output', output, 'run', '1')
if deadline_in > 0 then redis.call('HSET', job(id), 'deadline', int(t + deadline_in)) end
redis.call('SET', 'cq:in:' .. id, inputs)
redis.call('ZADD', 'cq:runs', int(t), id)
if idempotency ~= '' then
  redis.call('HSET', job(id), 'idem', idem(owner, idempotency))
  redis.call('SET', idem(owner, idempotency), id .. digest)
end
list(owner, id, int(t), tonumber(ttl))
return {'ok', int(t)}
