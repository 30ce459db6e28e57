-- The job that an idempotency key stands for already: {'same' or 'reused', id}, or false.
return repeated(ARGV[1], ARGV[2], ARGV[3]) or false
