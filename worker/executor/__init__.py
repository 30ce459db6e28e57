"""The job executor: what a worker does with the jobs that it is sent. It claims, holds, completes or gives back."""
