#!lua flags=allow-oom
-- Take the dead workers from the set, and count them. Only who has seen the store for a whole lease may say so: after an
-- outage all look dead until their next heartbeat.
for _, id in ipairs(redis.call('SMEMBERS', 'cq:workers')) do
  if redis.call('EXISTS', 'cq:worker:' .. id) == 0 then
    redis.call('SREM', 'cq:workers', id)
    count('worker_lost', '', '') -- one that ends by itself takes its name from the set
  end
end
