#!lua flags=allow-oom
-- The job that was submitted with an idempotency key: {'same' or 'reused', id}, or false.
return repeated(ARGV[1], ARGV[2], ARGV[3]) or false
