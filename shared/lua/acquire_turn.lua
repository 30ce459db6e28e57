#!lua flags=allow-oom
-- Whether this process reconciles now: 1, or 0 if another has done it within PERIOD ms.
return redis.call('SET', 'cq:reconciler', ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
