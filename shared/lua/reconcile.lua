#!lua flags=allow-oom
--+ held recount transitions
-- Reconcile a page of those of a model's unfinished jobs that are due to be looked at, and with the first page the oldest
-- that wait in each lane, and some others:
-- * expire each job whose deadline has passed,
-- * put each job of a dead worker back in the queue, and each job that its live worker has not named for `neglected` ms
--   (a store that has lost its last writes may have lost the end of a job: its worker does not know the job any more),
-- * return the jobs that no message refers to, as {next offset or -1, lane, id, lane, id, …}.
-- What it costs is what is due and what runs, and not what waits.
local model, offset, page = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local max_attempts, resend_after, resend_anyway = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local neglected = tonumber(ARGV[7])

local OLDEST = 256 -- those of a lane that may have lost their messages
local SOME = 100 -- others that a pass looks at: a worker of an earlier release does not mark that a job runs
local t = now()
local open = 'cq:open:' .. model
local alive, waiting, looked, out = {}, {}, {}, {}

-- Whether messages wait in a lane's queue.
local function messages(lane)
  if waiting[lane] == nil then waiting[lane] = redis.call('LLEN', 'clip.' .. model .. '.' .. lane) > 0 end
  return waiting[lane]
end

-- Whether the job stays due.
local function look(id)
  if looked[id] then return end
  looked[id] = true
  local f = redis.call('HMGET', job(id), 'state', 'worker', 'deadline', 'attempts', 'lane', 'created', 'sent', 'led',
                       'started', 'held')
  local state, worker, deadline, lane, sent = f[1], f[2], tonumber(f[3] or '0'), f[5], tonumber(f[7] or '0')
  if not state or not lane then
    redis.call('ZREM', open, id) -- its record was evicted
    for _, lane in ipairs(LANES) do redis.call('ZREM', 'cq:queued:' .. model .. ':' .. lane, id) end
    return
  end
  if state == 'running' then
    redis.call('ZADD', open, 'XX', RUNNING, id)
    if alive[worker] == nil then alive[worker] = redis.call('EXISTS', 'cq:worker:' .. worker) == 1 end
    local named = math.max(tonumber(f[9] or '0'), tonumber(f[10] or '0'))
    if alive[worker] and (f[8] or t - named <= neglected) then return true end
    if f[8] then
      close(id, 'failed', ERRORS.leader_lost, '', t)
      return
    elseif (tonumber(f[4]) or 0) >= max_attempts then
      close(id, 'failed', ERRORS.worker_lost, '', t)
      return
    end
    requeue(id, model, lane, tonumber(f[6]) and f[6] or int(t))
    count('requeued', lane, model)
    sent = 0
  elseif state ~= 'queued' then
    return true
  end
  if deadline > 0 and deadline <= t then
    close(id, 'expired', ERRORS.expired, '', t)
    return
  end
  redis.call('ZADD', open, 'XX', int(deadline > 0 and deadline or NEVER + (tonumber(f[6]) or t)), id)
  -- While messages wait in the queue, the job's message is probably one of them.
  if t - sent >= (sent > 0 and messages(lane) and resend_anyway or resend_after) then
    redis.call('HSET', job(id), 'sent', int(t))
    count('resent', lane, model)
    out[#out + 1] = lane
    out[#out + 1] = id
  end
end

local due = redis.call('ZRANGEBYSCORE', open, '-inf', int(t), 'LIMIT', offset, page)
local stay = 0
for _, id in ipairs(due) do
  if look(id) then stay = stay + 1 end
end
if offset == 0 then
  sweep(t)
  if redis.call('SET', 'cq:recount', '1', 'NX', 'PX', RECOUNT) then recount() end
  if redis.call('ZCARD', open) == 0 then -- without jobs the load is 0; evicted records may have left a rest
    for _, lane in ipairs(LANES) do redis.call('HDEL', 'cq:load', model .. ':' .. lane) end
  end
  for _, lane in ipairs(LANES) do
    local queued = 'cq:queued:' .. model .. ':' .. lane
    local oldest = redis.call('ZRANGE', queued, 0, 0, 'WITHSCORES')[2] -- no job that waits was sent before this time
    if oldest and t - tonumber(oldest) >= (messages(lane) and resend_anyway or resend_after) then
      for _, id in ipairs(redis.call('ZRANGE', queued, 0, OLDEST - 1)) do look(id) end
    end
  end
  for _, id in ipairs(redis.call('ZRANDMEMBER', open, SOME)) do look(id) end
end
table.insert(out, 1, #due == page and int(offset + stay) or '-1')
return out
