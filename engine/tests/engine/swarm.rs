//! A swarm over real links.
