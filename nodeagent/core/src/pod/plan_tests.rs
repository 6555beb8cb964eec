//! Scripts of the pod worker: what is done next in each situation.


