#!lua flags=allow-oom
--+ message
-- Send references to jobs, which are in the store, to the workers: queue, message, '1' if it may join another, ids.
publish(ARGV[1], ARGV[2], ARGV[3] == '1', {unpack(ARGV, 4)})
return 1
