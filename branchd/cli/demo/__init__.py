"""`branchd demo`: a branch in a temporary folder, with a small Celery application, and a tour that proves each step."""
