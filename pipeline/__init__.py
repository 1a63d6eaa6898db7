"""The core of retort and the stages that need no model."""
