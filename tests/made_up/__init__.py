"""A family of models and a task that the zoo does not have, as a user would add them."""
