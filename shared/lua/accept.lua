#!lua
--+ held message
-- Accept jobs, and put one message with references to the new ones into their queue, which is that of all of them: a list
-- with {'ok', created} {'full', load} {'held', …} {'same', id} or {'reused', id} for each. Each job is the number of its
-- arguments and then these. No queue (''): nobody is told.
-- The one script with accept_run that may not run when the server has reached its maxmemory.

local t = now()

-- What is written at the end, at once: what is new in sorted sets, and by place what waits there, and what more.
local scored, loads, more = {}, {}, {}

local function accept(a)
  local id, model, lane, total, limit = a[1], a[2], a[3], tonumber(a[4]), tonumber(a[5])
  local deadline_in, owner, listed = tonumber(a[6]), a[7], a[8]
  local idempotency, digest, ttl, inputs = a[9], a[10], a[11], a[12]
  local bytes, max_bytes, share = tonumber(a[13]), tonumber(a[14]), tonumber(a[15])

  if idempotency ~= '' then
    local first = repeated(owner, idempotency, digest)
    if first then return first end
  end

  local place = model .. ':' .. lane
  local load = loads[place] or tonumber(redis.call('HGET', 'cq:load', place) or '0')
  if load > 0 and load + total > limit then return {'full', load} end
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
  for i = 16, #a do fields[#fields + 1] = a[i] end
  redis.call('HSET', job(id), unpack(fields))
  redis.call('SET', 'cq:in:' .. id, inputs)
  onto(scored, 'cq:open:' .. model, int(t + (deadline_in > 0 and deadline_in or NEVER)), id)
  onto(scored, 'cq:queued:' .. place, int(t), id)
  loads[place], more[place] = load + total, (more[place] or 0) + total
  if idempotency ~= '' then redis.call('SET', idem(owner, idempotency), id .. digest) end
  if listed == '1' then list(owner, id, int(t), tonumber(ttl)) end
  return {'ok', int(t)}
end

local out, fresh, at = {}, {}, 4
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  local a = {unpack(ARGV, at + 1, at + count)}
  out[#out + 1] = accept(a)
  if out[#out][1] == 'ok' then fresh[#fresh + 1] = a[1] end
  at = at + count + 1
end
for set, members in pairs(scored) do redis.call('ZADD', set, unpack(members)) end
for place, items in pairs(more) do add('cq:load', place, items) end
if #fresh > 0 and ARGV[1] ~= '' then publish(ARGV[1], ARGV[2], ARGV[3] == '1', fresh) end
return out
