//! Scripts of the status: what a pod looks like from outside in each situation.


