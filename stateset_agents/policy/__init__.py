"""The client of the policy servers: a chat model that keeps its sampled tokens, and the replicas behind it."""
