#!lua flags=allow-oom
-- For the leader of a bulk run: renew its lease and write the run's progress. Creates the record at the first call.
-- Returns the state of the run.
local id, leader, lease, model, owner, ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local kind, lane, total, done, failed, progress = ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local k = job(id)
local state = redis.call('HGET', k, 'state')
if not state then
  local t = int(now())
  redis.call('HSET', k, 'id', id, 'kind', kind, 'model', model, 'lane', lane, 'owner', owner, 'state', 'running',
             'worker', leader, 'led', '1', 'created', t, 'started', t, 'attempts', '1', 'ttl', ttl, 'total', '0')
  redis.call('ZADD', 'cq:open:' .. model, RUNNING, id)
  list(owner, id, t, tonumber(ttl))
  state = 'running'
end
if state ~= 'running' then return state end
redis.call('SET', 'cq:worker:' .. leader, '', 'PX', lease)
-- The rows of a run are not counted as load: only its shards wait for a worker.
redis.call('HSET', k, 'rows', total, 'done', done, 'failed', failed, 'progress', progress)
alive(id, done .. '+' .. failed)
tell_watchers(id)
return state
