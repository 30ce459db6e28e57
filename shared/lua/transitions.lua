-- The ends of a job, and its way back into the queue.

-- Bytes of a result that its message may hold. The message about a larger one says only that it is in the store, which
-- otherwise would have it twice.
local INLINE = 262144

-- End a job. Returns 1 if this call has ended it, 0 if it had ended before, or if it is not the worker's `by` (nil: anybody
-- may end it). `done`, `failed` and `took`: what its record says of its items, nil: what it said before.
local function close(id, state, err, result, t, by, done, failed, took)
  local k = job(id)
  local f = redis.call('HMGET', k, 'state', 'model', 'lane', 'total', 'reply', 'ttl', 'idem', 'owner', 'bytes',
                       'deadline', 'kind', 'watched', 'worker')
  if not may(f[1], state) or by and by ~= f[13] then return 0 end
  -- A record that lacks a field, of another release or damaged, must be able to end too.
  local ttl, waits, owner = tonumber(f[6]) or 60000, f[5] and f[5] ~= '', f[8] or ''
  f[2], f[3] = f[2] or '', f[3] or ''
  local stays = waits and result_ttl(ttl, f[10], t) or ttl
  if result ~= '' then
    local written = redis.pcall('SET', 'cq:out:' .. id, result, 'PX', int(stays))
    if type(written) == 'table' and written.err then state, err, result = 'failed', ERRORS.unwritable, '' end
  end
  count(state, f[3], f[2])
  if by then
    redis.call('HSET', k, 'state', state, 'error', err, 'finished', int(t), 'expires', int(t + ttl), 'done', done, 'failed',
               failed, 'took', took)
    if f[11] == 'embed_shard' and state == 'succeeded' then
      count('rows_done', f[3], f[2], done)
      count('rows_failed', f[3], f[2], failed)
    end
  else
    redis.call('HSET', k, 'state', state, 'error', err, 'finished', int(t), 'expires', int(t + ttl))
  end
  remove('cq:open:' .. f[2], id)
  if f[11] == 'embed_dataset' then redis.call('ZREM', 'cq:live_runs', id) end
  remove('cq:queued:' .. f[2] .. ':' .. f[3], id)
  add('cq:load', f[2] .. ':' .. f[3], -(tonumber(f[4]) or 0))
  delete('cq:in:' .. id)
  redis.call('PEXPIRE', k, int(ttl))
  if f[7] then redis.call('PEXPIRE', f[7], int(ttl)) end
  if f[12] then
    tell_watchers(id)
    redis.call('PEXPIRE', 'cq:watch:' .. id, int(ttl))
  end
  if waits then push(f[5], #result <= INLINE and id .. result or id) end
  local bytes = RECORD + #err
  hold(owner, bytes + #result - (tonumber(f[9]) or 0))
  if stays == ttl then bytes = bytes + #result
  elseif result ~= '' then keep(owner, #result, t + stays) end
  keep(owner, bytes, t + ttl)
  return 1
end

-- Put a running job back in the queue, at its place by time of arrival. A run keeps its place among the runs.
local function requeue(id, model, lane, created)
  redis.call('HSET', job(id), 'state', 'queued', 'worker', '', 'sent', '0', 'done', '0', 'failed', '0')
  if not redis.call('HGET', job(id), 'run') then
    redis.call('ZADD', 'cq:queued:' .. model .. ':' .. lane, created, id)
  end
  tell_watchers(id)
end
