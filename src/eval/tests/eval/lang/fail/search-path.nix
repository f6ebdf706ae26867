<nothing-like-this>
