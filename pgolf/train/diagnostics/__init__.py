"""What a training run watches of itself: the events of its schedules, learned gains, parameters that do not learn."""
