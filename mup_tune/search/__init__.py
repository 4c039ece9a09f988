"""Plans, stages and the loop that walks them. Decisions are pure functions of finished trials."""
