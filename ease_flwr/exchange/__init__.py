"""What the server and the clients say to each other: messages, answers, rounds, and the journal of them."""
