"""vLLM as the policy's server: an environment of its own, the flags that training needs, a process that is watched."""
