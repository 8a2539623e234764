namespace fourd {
__global__ void nothing() {}
void touch() { nothing<<<1, 1>>>(); }
}  // namespace fourd
