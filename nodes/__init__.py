"""What graphs are made of: calling the policy, running tools, confirming, handing off, the customer."""
