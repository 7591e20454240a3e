"""What every bench reporter says, whatever the document: findings in order, numbers, words, commands."""
