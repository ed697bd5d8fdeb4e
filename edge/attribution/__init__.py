"""Attribution: which layer the drift comes from, and what is wrong if anything is."""
