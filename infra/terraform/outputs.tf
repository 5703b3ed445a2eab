output "cluster_name" {
  description = "For `aws eks update-kubeconfig --name`."
  value       = aws_eks_cluster.main.name
}

output "image_prefix" {
  description = "MMBERT_IMAGE_PREFIX of `make images`: target and tag come behind it."
  value       = "${local.account}.dkr.ecr.${var.region}.amazonaws.com/${local.name}/"
}

output "database_host" {
  description = "PostgreSQL's address."
  value       = aws_db_instance.main.address
}

output "database_admin_secret" {
  description = "The secret in Secrets Manager that holds the master's login; for making the services' users."
  value       = aws_db_instance.main.master_user_secret[0].secret_arn
}

output "logs_bucket" {
  description = "Bucket of Airflow's logs, for infra/helm/airflow-values-prod.yaml."
  value       = aws_s3_bucket.main["logs"].bucket
}

output "settings_env" {
  description = "infra/kubernetes/overlays/prod/settings.env."
  value       = <<-EOT
    AWS_REGION=${var.region}
    MLFLOW_TRACKING_URI=http://mlflow.mlflow.svc:5000
    MMBERT_LOG_FORMAT=json
    MMBERT_METRICS_PORT=9464
    MMBERT_ROOT=s3://${aws_s3_bucket.main["artifacts"].bucket}/artifacts
  EOT
}

output "mlflow_env" {
  description = "infra/kubernetes/overlays/prod/mlflow.env."
  value       = <<-EOT
    AWS_REGION=${var.region}
    MLFLOW_ARTIFACTS_DESTINATION=s3://${aws_s3_bucket.main["mlflow"].bucket}/mlflow
  EOT
}
