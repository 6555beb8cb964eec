//! Running keelson: server, agent, join, up, down, status.
