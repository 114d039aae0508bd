"""The client of the policy servers: a chat model that keeps what it sampled, and the replicas behind it."""
