output "cluster_name" {
  description = "aws eks update-kubeconfig --name … --region …"
  value       = aws_eks_cluster.this.name
}

output "image" {
  description = "Repository that the image is pushed to."
  value       = aws_ecr_repository.this.repository_url
}

output "bucket" {
  description = "Bucket of datasets, logs and artifacts."
  value       = aws_s3_bucket.this.bucket
}

output "database_secret" {
  description = "Name of the secret with the database's password."
  value       = aws_secretsmanager_secret.database.name
}

output "github_role" {
  description = "Role that the repository's workflow assumes; empty without var.github_repository."
  value       = try(aws_iam_role.github[0].arn, "")
}

output "place" {
  description = "The ConfigMap forge-place: terraform output -raw place | kubectl apply -f -"
  value = yamlencode({
    apiVersion = "v1"
    kind       = "ConfigMap"
    metadata   = { name = "forge-place", namespace = module.plan.namespace }
    data = {
      PGHOST            = aws_db_instance.this.address
      PGUSER            = aws_db_instance.this.username
      PGSSLMODE         = "require"
      FORGE_STORAGE_URL = "s3://${aws_s3_bucket.this.bucket}/storage"
      MLFLOW_ARTIFACTS  = "s3://${aws_s3_bucket.this.bucket}/mlflow"
      AWS_REGION        = var.aws_region
    }
  })
}
